"""Every kernel, interpreted, against `functional`."""

import itertools

import pytest
import torch
from torch import Tensor

import kernel_contract
from kernel_contract import DTYPES
from llmint8 import functional
from llmint8.kernels.triton import column_scores, quantize_rows, tiles
from llmint8.kernels.triton.int8_linear import int8_linear
from llmint8.outliers import OutlierRule

ROWS = (1, 2, 15, 16, 17, 33, 130)
FEATURES = (1, 31, 32, 100, 257, 576)
OUTPUTS = (1, 7, 64, 129)
# Numbers of outlier columns: one turn of the loop over them takes 16 or 32.
OUTLIERS = (0, 1, 7, 32, 37, "all")


@pytest.fixture(autouse=True)
def _several_rows_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_scores, "PROGRAMS", 3)
    monkeypatch.setattr(quantize_rows, "PROGRAMS", 3)


def settings(n_outliers: int | str, k: int, case: int) -> tuple[OutlierRule, Tensor | None]:
    """A setting that has so many outlier columns, of a mode that depends on the case; `make_input` fits."""
    count = k if n_outliers == "all" else min(int(n_outliers), k)
    symmetric, relative = bool(case & 1), bool(case & 2)
    if case % 3 == 0:
        return OutlierRule("threshold", 6.0 if count else 1e9, 0, relative, symmetric), None
    if case % 3 == 1:
        return OutlierRule("budget", 0.0, count, relative, symmetric), None
    columns = torch.randperm(k)[:count]
    return OutlierRule("static", 0.0, count, False, symmetric), torch.cat([columns, columns[:1]])  # one of them twice


def make_input(m: int, k: int, dtype: torch.dtype, n_outliers: int | str, strided: bool) -> Tensor:
    x = torch.randn(m, k).clamp(-2, 2)
    if n_outliers:
        columns = slice(None) if n_outliers == "all" else torch.randperm(k)[: int(n_outliers)]
        x[m // 2, columns] = 60 * x[m // 2, columns].sign()
    if strided:
        return torch.stack([x, x + 1], dim=1).to(dtype)[:, 0]
    return x.to(dtype)


def check(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, columns: Tensor | None, rule: OutlierRule
) -> None:
    y = int8_linear(x, weight, scale, bias, columns, rule)
    wanted = kernel_contract.expected(x, weight, scale, bias, columns, rule, tiles.DECODE_ROWS)
    kernel_contract.check(y, wanted, x, weight, scale, bias)


@pytest.mark.parametrize("n", OUTPUTS)
@pytest.mark.parametrize("k", FEATURES)
@pytest.mark.parametrize("m", ROWS)
def test_same_as_functional(m: int, k: int, n: int) -> None:
    torch.manual_seed(m * k + n)
    weight, scale = functional.quantize_rowwise(torch.randn(n, k))
    # Each size meets every third pair of dtype and number of outliers (the largest every sixth), its neighbours the
    # others, in changing modes.
    size = ROWS.index(m) + FEATURES.index(k) + OUTPUTS.index(n)
    for case, (dtype, n_outliers) in enumerate(itertools.product(DTYPES, OUTLIERS), start=size):
        if (case + DTYPES.index(dtype)) % (6 if m == 130 else 3):
            continue
        x = make_input(m, k, dtype, n_outliers, strided=case % 4 < 2)
        bias = torch.randn(n).to(dtype) if case % 5 else None
        rule, columns = settings(n_outliers, k, case // 3 + n)
        check(x, weight, scale, bias, columns, rule)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_outliers", [0, 1, 17, 64, 65, 144])
def test_many_outlier_columns_are_gathered(n_outliers: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n_outliers)
    weight, scale = functional.quantize_rowwise(torch.randn(33, 576))
    x = make_input(70, 576, dtype, n_outliers, strided=True)
    check(x, weight, scale, torch.randn(33).to(dtype), None, OutlierRule("budget", 6.0, 144))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mode", ["budget", "threshold", "static", "none"])
@pytest.mark.parametrize("m", [1, 3, 40])
def test_a_row_that_is_not_finite_spoils_itself_only(m: int, mode: str, symmetric: bool) -> None:
    torch.manual_seed(0)
    weight, scale = functional.quantize_rowwise(torch.randn(24, 48))
    columns = torch.tensor([5, 7])
    for bad, column in itertools.product((torch.nan, -torch.inf), (5, 6)):
        x = torch.randn(m, 48)
        x[:, 5] *= 30
        clean = x.clone()
        x[m // 2, column] = bad
        arguments = (weight, scale, None, columns, OutlierRule(mode, 6.0, 2, True, symmetric))
        y, others = int8_linear(x, *arguments), torch.arange(m) != m // 2
        assert not y[m // 2].isfinite().any()
        torch.testing.assert_close(y[others], int8_linear(clean, *arguments)[others], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [40, 90])
def test_rows_that_do_not_fit_registers(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(tiles, "LARGEST_ROW", 32)
    torch.manual_seed(k)
    weight, scale = functional.quantize_rowwise(torch.randn(8, k))
    for case in range(6):
        x = make_input(40, k, torch.float16, 7, strided=False)
        rule, columns = settings(7, k, case)
        check(x, weight, scale, None, columns, rule)


def test_of_equal_scores_the_first_columns_count() -> None:
    x = torch.ones(40, 300)
    x[:, 100:] = -2
    x[:, 7] = 3
    rows = quantize_rows.quantize_rows(x, None, OutlierRule("budget", budget=9))
    assert rows.columns.tolist() == [7, *range(100, 108)]
    assert rows.n_columns.item() == 9
    everything = quantize_rows.quantize_rows(torch.zeros(40, 20), None, OutlierRule("budget", budget=32, relative=True))
    assert everything.columns.tolist() == list(range(20))


@pytest.mark.parametrize("largest_row", [16384, 64], ids="rows of {}".format)
def test_the_floor_of_a_budget(largest_row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LARGEST_ROW", largest_row)
    x = torch.ones(9, 100)
    x[3, [7, 70, 99]] = torch.tensor([9.0, -7.0, 8.0])
    for budget, threshold in ((2, 0.0), (2, 7.0), (8, 7.0), (8, 100.0), (100, 8.0)):
        rule = OutlierRule("budget", threshold, budget)
        rows = quantize_rows.quantize_rows(x, None, rule)
        expected = functional.select_outliers(x, None, rule).nonzero().flatten()
        assert rows.columns[: rows.n_columns].tolist() == expected.tolist()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_those_of_functional(dtype: torch.dtype, symmetric: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 333).to(dtype)
    x[3] = 0
    x[4] = x[4].abs()
    x[5] = x[5] * torch.finfo(dtype).tiny
    rows = quantize_rows.quantize_rows(x, None, OutlierRule("none", symmetric=symmetric))
    wanted = functional.quantize_rowwise(x) if symmetric else functional.quantize_zeropoint(x)
    assert torch.equal(rows.codes, wanted[0])
    assert torch.equal(rows.scale, wanted[1].flatten())
    if not symmetric:
        assert torch.equal(rows.zero_point, wanted[2].flatten())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_those_of_functional(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 333).to(dtype)
    x[3, 7], x[4, 8], x[:, 9] = torch.nan, torch.inf, 0
    for relative in (True, False):
        scores = column_scores.column_scores(x, relative).view(torch.float32)
        torch.testing.assert_close(scores, functional.outlier_scores(x, relative), rtol=1e-6 if relative else 0, atol=0)


def test_what_cannot_be_contiguous_is_copied() -> None:
    torch.manual_seed(0)
    weight, scale = functional.quantize_rowwise(torch.randn(24, 96))
    x = torch.randn(48, 40).T
    wide = torch.randn(40, 96)
    for m in (1, 5, 40):
        check(x[:m], weight[:, ::2], scale, None, None, OutlierRule("budget", budget=4, relative=True))
        check(wide[:m, 24:72], weight[:, 24:72], scale, None, None, OutlierRule("budget", budget=4, relative=True))
        check(wide[:1].expand(m, 96), weight, scale, None, None, OutlierRule("none", symmetric=True))
