"""The CPU kernel against the reference kernel."""

import pytest
import torch

from llmint8 import functional
from llmint8.kernels.cpu import int8_linear as cpu
from llmint8.kernels.reference import int8_linear as reference

MODES = [
    ("budget", 0.0, 5, True, False),
    ("budget", 0.0, 400, False, True),
    ("threshold", 3.0, 0, False, False),
    ("threshold", 1e9, 0, False, True),
    ("static", 0.0, 3, False, False),
    ("none", 0.0, 0, False, False),
]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 33, 130])
def test_same_as_the_reference(m: int, dtype: torch.dtype, mode: tuple) -> None:
    generator = torch.Generator().manual_seed(m)
    for k, n in [(1, 1), (1, 64), (2, 1), (31, 7), (32, 129), (100, 64), (257, 7), (576, 129)]:
        x = torch.randn(m, k, generator=generator)
        x[:, k // 2] *= 20
        x[m // 2] = 0
        x = x.to(dtype)
        weight, scale = functional.quantize_rowwise(torch.randn(n, k, generator=generator))
        bias = torch.randn(n, generator=generator).to(dtype)
        columns = torch.randperm(k, generator=generator)[:3] if mode[0] == "static" else None
        # Both multiply the same codes; what differs is the order of fp32 sums, K + 8 roundings of the size of the
        # terms, and after that one rounding to the dtype may fall on either side.
        size = x.float().abs() @ functional.dequantize(weight, scale).abs().T + bias.float().abs()
        size += x.float().abs().amax(1, keepdim=True) * functional.dequantize(weight, scale).abs().sum(1)
        for b in (bias, None):
            y = cpu.int8_linear(x, weight, scale, b, columns, *mode)
            expected = reference.int8_linear(x, weight, scale, b, columns, *mode)
            allowed = 2 * (k + 8) * 2**-24 * size + torch.finfo(dtype).eps * expected.float().abs()
            assert ((y.float() - expected.float()).abs() <= allowed).all(), (k, n)


def test_a_weight_view_is_multiplied_right() -> None:
    weight, scale = functional.quantize_rowwise(torch.randn(40, 64))
    for m in (1, 5, 40):
        x = torch.randn(m, 32)
        for view in (weight[:, ::2], weight[:, 16:48], weight[:32].T[:32].T[:, :32]):
            s = scale[: len(view)]
            y = cpu.int8_linear(x, view, s, None, None, *MODES[0])
            torch.testing.assert_close(
                y, reference.int8_linear(x, view, s, None, None, *MODES[0]), rtol=1e-4, atol=1e-4
            )


@pytest.mark.skipif(not cpu.int_mm_is_fast(), reason="the processor has no VNNI")
def test_a_decoded_row_does_not_depend_on_its_batch_or_the_threads() -> None:
    torch.manual_seed(0)
    x = torch.randn(cpu.DECODE_ROWS, 300).bfloat16()
    weight, scale = functional.quantize_rowwise(torch.randn(70, 300))
    together = cpu.int8_linear(x, weight, scale, None, None, *MODES[0])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone = [cpu.int8_linear(row[None], weight, scale, None, None, *MODES[0]) for row in x]
            assert torch.equal(torch.cat(alone), together)
    finally:
        torch.set_num_threads(threads)


def test_without_vnni_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "int_mm_is_fast", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    x = torch.randn(20, 32)
    weight, scale = functional.quantize_rowwise(torch.randn(8, 32))
    y = cpu.int8_linear(x, weight, scale, None, None, *MODES[0])
    assert torch.equal(y, reference.int8_linear(x, weight, scale, None, None, *MODES[0]))
