"""The CPU kernel against the reference kernel."""

import pytest
import torch

from kernel_contract import DTYPES, ROWS, RULES, SIZES, check, make_columns, make_input, make_weight
from llmint8 import functional
from llmint8.kernels.cpu import int8_linear as cpu
from llmint8.kernels.cpu.limits import DECODE_ROWS
from llmint8.kernels.reference import int8_linear as reference
from llmint8.outliers import OutlierRule

BUDGET = RULES["budget"]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", ROWS)
def test_same_as_the_reference(m: int, dtype: torch.dtype, rule: OutlierRule) -> None:
    generator = torch.Generator().manual_seed(m)
    for k, n in SIZES:
        x, (weight, scale) = make_input(m, k, dtype, generator), make_weight(n, k, generator)
        bias, columns = torch.randn(n, generator=generator).to(dtype), make_columns(rule, k, generator)
        for b in (bias, None):
            y = cpu.int8_linear(x, weight, scale, b, columns, rule)
            check(y, reference.int8_linear(x, weight, scale, b, columns, rule), x, weight, scale, b)


def test_a_weight_view_is_multiplied_right() -> None:
    weight, scale = functional.quantize_rowwise(torch.randn(40, 64))
    for m in (1, 5, 40):
        x = torch.randn(m, 32)
        for view in (weight[:, ::2], weight[:, 16:48], weight[:32].T[:32].T[:, :32]):
            s = scale[: len(view)]
            y = cpu.int8_linear(x, view, s, None, None, BUDGET)
            torch.testing.assert_close(y, reference.int8_linear(x, view, s, None, None, BUDGET), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not cpu.int_mm_is_fast(), reason="the processor has no VNNI")
def test_a_decoded_row_does_not_depend_on_its_batch_or_the_threads() -> None:
    torch.manual_seed(0)
    x = torch.randn(DECODE_ROWS, 300).bfloat16()
    weight, scale = functional.quantize_rowwise(torch.randn(70, 300))
    together = cpu.int8_linear(x, weight, scale, None, None, BUDGET)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone = [cpu.int8_linear(row[None], weight, scale, None, None, BUDGET) for row in x]
            assert torch.equal(torch.cat(alone), together)
    finally:
        torch.set_num_threads(threads)


def test_without_vnni_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "int_mm_is_fast", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    x = torch.randn(20, 32)
    weight, scale = functional.quantize_rowwise(torch.randn(8, 32))
    y = cpu.int8_linear(x, weight, scale, None, None, BUDGET)
    assert torch.equal(y, reference.int8_linear(x, weight, scale, None, None, BUDGET))
