"""The fused operators as operators: schemas, shapes under tracing, and a reference on every device."""

import pytest
import torch

from llmint8 import functional, ops
from llmint8.outliers import OutlierRule

RULE = OutlierRule("budget", 0.0, 4, True, False)


def layers(*shapes: tuple[int, int]) -> tuple[list, list, list, list]:
    quantized = [functional.quantize_rowwise(torch.randn(shape)) for shape in shapes]
    return [q for q, _ in quantized], [s for _, s in quantized], [None] * len(shapes), [None] * len(shapes)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("suffix", ["", "_fallback"])
def test_opcheck(rows: int, suffix: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, rows, 32)
    heads = [torch.randn(1, rows, 2, 8).transpose(1, 2).contiguous() for _ in range(2)]
    angles = torch.randn(1, rows, 8)
    calls = {
        "int8_linears": (x, *layers((8, 32), (12, 32)), *RULE),
        "gated_mlp": (x, *layers((24, 32), (24, 32), (32, 24)), "silu", 6, *RULE),
        "rms_norm": (x, torch.randn(32), 1e-6, False),
        "rotate": (*heads, angles, angles),
    }
    if rows == 2:  # a decoder layer is for one token of each sequence
        cache = [torch.randn(2, 2, 9, 8) for _ in range(2)]
        weights = layers((32, 32), (16, 32), (16, 32), (32, 32), (24, 32), (24, 32), (32, 24))[:3]
        norms = [torch.randn(32) for _ in range(2)]
        angle = torch.randn(1, 1, 8)
        token = torch.randn(2, 1, 32)
        calls["decoder_layer"] = (token, angle, angle, *cache, 4, norms, [], 1e-6, True, *weights, 0.3, "gelu_tanh")
    for name, args in calls.items():
        torch.library.opcheck(getattr(torch.ops.llmint8, name + suffix).default, args)


def test_an_unknown_activation_is_refused() -> None:
    args = layers((24, 32), (24, 32), (32, 24))
    with pytest.raises(ValueError, match="silu, gelu_tanh, got 'relu'"):
        ops.gated_mlp(torch.randn(1, 32), *args, "relu", 6, RULE)


def test_on_other_devices_shapes_are_known() -> None:
    x = torch.randn(2, 3, 32, device="meta")
    weight, scale = torch.empty(8, 32, dtype=torch.int8, device="meta"), torch.empty(8, 1, device="meta")
    (y,) = ops.int8_linears(x, [weight], [scale], [None], [None], RULE)
    assert y.shape == (2, 3, 8)
    assert ops.rms_norm(x, torch.empty(32, device="meta"), 1e-6).shape == x.shape
