import torch
from transformers.pytorch_utils import Conv1D

from llmint8 import ops
from llmint8.nn import Int8Conv1D


def test_the_transposed_layer() -> None:
    torch.manual_seed(0)
    conv = Conv1D(24, 40)
    layer = Int8Conv1D.from_float(conv)
    assert (layer.nf, layer.nx, tuple(layer.weight.shape)) == (24, 40, (24, 40))
    codes, scale = ops.quantize_weight(conv.weight.detach().T)
    assert torch.equal(layer.weight, codes)
    assert layer.weight.is_contiguous()
    x = torch.randn(3, 9, 40)
    torch.testing.assert_close(layer(x), x @ (codes * scale).T + conv.bias, rtol=0, atol=0.05)


def test_to_float_gives_the_class_back() -> None:
    conv = Conv1D(24, 40)
    restored = Int8Conv1D.from_float(conv).to_float(torch.float16)
    assert type(restored) is Conv1D
    assert restored.weight.shape == conv.weight.shape
    assert restored.weight.dtype == torch.float16
    torch.testing.assert_close(restored.weight.float(), conv.weight.detach(), rtol=0, atol=1e-3)
