"""The arithmetic against its formulas in fp64.

Bounds. `u = 2**-24` is the unit roundoff of fp32. A code is `round(x / s)`: the quotient has a relative error of at
most `u` and is at most 255, so the code is within `1/2 + 255 u` steps of `x / s`, and `s` itself within `3 u` of the
exact `absmax / 127`.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import llmint8.ops  # noqa: F401  registers the operators
from llmint8 import functional as F  # noqa: N812
from llmint8.outliers import OutlierRule

HALF_STEP = 0.5 + 256 * 2**-24


@st.composite
def matrices(draw: st.DrawFn, rows: int = 40, columns: int = 300) -> Tensor:
    """A matrix with rows of very different scales, some of zeros, and a few large columns."""
    m, k = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(m, k, generator=generator)
    x *= 10.0 ** torch.randint(-4, 3, (m, 1), generator=generator)
    x *= torch.where(torch.rand(k, generator=generator) < 0.05, 30.0, 1.0)
    x *= torch.rand(m, 1, generator=generator) > draw(st.sampled_from([0.0, 0.3]))
    if draw(st.booleans()):
        x = x.abs()
    return x.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))


@given(matrices())
def test_quantize_rowwise(x: Tensor) -> None:
    codes, scale = F.quantize_rowwise(x)
    exact = x.double().abs().amax(1, keepdim=True) / 127
    exact[exact == 0] = 1
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert codes.min() >= -127
    torch.testing.assert_close(scale.double(), exact, rtol=3 * 2**-24, atol=0)
    assert ((x.double() / scale - codes).abs() <= HALF_STEP).all()


@given(matrices())
def test_quantize_absmax_has_one_scale(x: Tensor) -> None:
    codes, scale = F.quantize_absmax(x)
    assert scale.shape == ()
    assert ((x.double() / scale - codes).abs() <= HALF_STEP).all()


@given(matrices())
def test_quantize_zeropoint_uses_the_full_range_and_keeps_zero(x: Tensor) -> None:
    codes, scale, zero_point = F.quantize_zeropoint(x)
    assert ((x.double() / scale - (codes.double() - zero_point)).abs() <= HALF_STEP).all()
    restored = F.dequantize(codes, scale, zero_point)
    assert (restored[x == 0] == 0).all()
    if x.shape[1] > 1:
        used = codes.int().amax(1) - codes.int().amin(1)
        both_signs = (x.amin(1) < 0) & (x.amax(1) > 0)
        assert (used[both_signs] >= 254).all()


def test_rounding_is_half_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert F.quantize_rowwise(x)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


@given(matrices(), st.data())
def test_outlier_columns_are_left_out_of_scale_and_codes(x: Tensor, data: st.DataObject) -> None:
    outliers = torch.zeros(x.shape[1], dtype=torch.bool)
    outliers[data.draw(st.lists(st.integers(0, x.shape[1] - 1)))] = True
    kept = x.masked_fill(outliers, 0)
    codes, scale = F.quantize_rowwise(x, outliers)
    assert (codes[:, outliers] == 0).all()
    torch.testing.assert_close(scale, F.quantize_rowwise(kept)[1])
    codes, scale, zero_point = F.quantize_zeropoint(x, outliers)
    assert (codes[:, outliers] == zero_point).all()
    torch.testing.assert_close(scale, F.quantize_zeropoint(kept)[1])


@given(matrices(), st.integers(0, 350))
def test_budget_takes_the_largest_scores(x: Tensor, budget: int) -> None:
    scores = F.outlier_scores(x)
    outliers = F.select_budget(scores, budget)
    assert outliers.sum() == min(budget, x.shape[1])
    if 0 < budget < x.shape[1]:
        assert scores[outliers].min() >= scores[~outliers].max()


@given(matrices(), st.floats(0.01, 100))
def test_threshold_takes_the_columns_of_the_paper(x: Tensor, threshold: float) -> None:
    expected = [bool((column.abs() >= threshold).any()) for column in x.float().T]
    assert F.select_outliers(x, None, OutlierRule("threshold", threshold)).tolist() == expected


def test_relative_scores_do_not_depend_on_the_scale_of_a_row() -> None:
    x = torch.randn(5, 64)
    scaled = x * torch.tensor([1.0, 1e-3, 50.0, 7.0, 1e3])[:, None]
    torch.testing.assert_close(F.outlier_scores(x, True), F.outlier_scores(scaled, True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("relative", [True, False])
def test_a_bad_row_does_not_take_the_outliers_of_the_others(bad: float, relative: bool) -> None:
    x = torch.randn(4, 100)
    x[1, 7] = 40
    spoiled = torch.cat([x, torch.full((1, 100), bad)])
    assert F.select_budget(F.outlier_scores(spoiled, relative), 1).nonzero().item() == 7


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match="'median'"):
        F.select_outliers(torch.ones(2, 2), None, OutlierRule("median", 1.0, 1))
    with pytest.raises(ValueError, match="llmint8.calibrate"):
        F.select_outliers(torch.ones(2, 2), None, OutlierRule("static", 0.0, 1))


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(1, 3000), st.integers(1, 20), st.integers(0, 2**31))
def test_int8_matmul_is_exact(m: int, k: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=generator) for rows in (m, n))
    assert torch.equal(F.int8_matmul(x, w).long(), x.long() @ w.long().T)


@pytest.mark.parametrize("k", [60_000, 66_000, 70_000, 131_072, 150_000])
@pytest.mark.parametrize("symmetric", [True, False])
def test_long_sums_do_not_overflow(k: int, symmetric: bool) -> None:
    codes_w, scale_w = F.quantize_rowwise(torch.ones(3, k))
    y = F.mixed_linear(torch.ones(2, k), codes_w, scale_w, symmetric=symmetric)
    torch.testing.assert_close(y, torch.full((2, 3), float(k)), rtol=1e-5, atol=0)
    y = torch.ops.llmint8.int8_linear(torch.ones(20, k), codes_w, scale_w, None, None, "none", 0.0, 0, False, symmetric)
    torch.testing.assert_close(y, torch.full((20, 3), float(k)), rtol=1e-5, atol=0)


@given(matrices(), st.integers(1, 40))
def test_with_every_column_an_outlier_nothing_is_quantized(x: Tensor, n: int) -> None:
    codes_w, scale_w = F.quantize_rowwise(torch.randn(n, x.shape[1]))
    everything = torch.ones(x.shape[1], dtype=torch.bool)
    mixed = F.mixed_linear(x.float(), codes_w, scale_w, outliers=everything)
    only = F.weight_only_linear(x.float(), codes_w, scale_w)
    # Both are fp32 sums of the same K products, each within K u of the sum of magnitudes.
    size = x.double().abs() @ F.dequantize(codes_w, scale_w).double().abs().T
    assert ((mixed - only).abs() <= 4 * (x.shape[1] + 4) * 2**-24 * size).all()


def test_vectorwise_linear_is_the_outer_product_of_scales() -> None:
    x, w = torch.randn(20, 64), torch.randn(8, 64)
    (codes_x, scale_x), (codes_w, scale_w) = F.quantize_rowwise(x), F.quantize_rowwise(w)
    expected = (codes_x.double() @ codes_w.double().T) * (scale_x.double() @ scale_w.double().T)
    torch.testing.assert_close(F.vectorwise_linear(x, codes_w, scale_w).double(), expected, rtol=1e-6, atol=1e-9)


def test_decomposition_repairs_what_outliers_break() -> None:
    """The point of the paper: one column 60 times as large spoils plain int8, and nothing once it is decomposed."""
    torch.manual_seed(0)
    x, w = torch.randn(64, 256), torch.randn(32, 256)
    x[:, 17] *= 60
    codes_w, scale_w = F.quantize_rowwise(w)
    exact = x @ F.dequantize(codes_w, scale_w).T
    plain = F.vectorwise_linear(x, codes_w, scale_w) - exact
    decomposed = F.mixed_linear(x, codes_w, scale_w, outliers=F.select_threshold(F.outlier_scores(x), 6.0)) - exact
    assert decomposed.abs().mean() * 10 < plain.abs().mean()


def test_zero_point_halves_the_error_of_one_sided_inputs() -> None:
    torch.manual_seed(0)
    x, w = torch.rand(64, 256), torch.randn(32, 256)
    codes_w, scale_w = F.quantize_rowwise(w)
    exact = x @ F.dequantize(codes_w, scale_w).T
    error = [(F.mixed_linear(x, codes_w, scale_w, symmetric=s) - exact).abs().mean() for s in (True, False)]
    assert error[1] < 0.6 * error[0]


def test_small_columns_of_a_weight_get_a_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 96, generator=generator)
    assert F.column_scale(weight) is None
    weight[:, 5] = 0
    assert F.column_scale(weight) is None
    weight[:, [7, 30]] /= torch.tensor([50.0, 1e6])
    scale = F.column_scale(weight)
    assert scale is not None
    assert 2.0**-6 <= scale[7] <= 2.0**-4
    assert scale[30] == 2.0**-8
    assert (scale == 1).sum() == 94
    # No element outgrows its row, seen among the rows that are looked at or not.
    assert ((weight / scale).abs().amax(1) == weight.abs().amax(1)).all()
    # What it is for: the columns get the accuracy of all others.
    codes, step = F.quantize_rowwise(weight / scale)
    error = (F.dequantize(codes, step) * scale - weight).square().mean(0).sqrt() / weight.square().mean(0).sqrt()
    assert error[7] < 0.05
    codes, step = F.quantize_rowwise(weight)
    assert ((F.dequantize(codes, step) - weight)[:, 7].norm() / weight[:, 7].norm()) > 0.3
    weight[401, 7] = 3  # large in a row that is not among those looked at
    scale = F.column_scale(weight)
    assert scale is not None
    assert scale[7] == 1


def test_the_floor_of_a_budget() -> None:
    x = torch.ones(4, 8)
    x[1, [2, 5, 6]] = torch.tensor([9.0, -7.0, 8.0])
    for budget, threshold, expected in (
        (2, 0, [2, 6]),
        (8, 7.5, [2, 6]),
        (8, 7.0, [2, 5, 6]),
        (1, 7.5, [2]),
        (8, 10, []),
    ):
        outliers = F.select_outliers(x, None, OutlierRule("budget", threshold, budget))
        assert outliers.nonzero().flatten().tolist() == expected
