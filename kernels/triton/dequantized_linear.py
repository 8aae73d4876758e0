"""The product in 16 bit by PyTorch, with a weight that is dequantized for the call."""

import torch
from torch import Tensor

from llmint8.kernels.triton.dequantize_weight import dequantize_weight


def dequantized_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `functional.weight_only_linear`, but for the rounding of the weight to the dtype of `x`.

    With many rows, dequantizing costs little beside the product. It takes room for one 16-bit weight, which the next
    layer uses again.

    Args:
        x: fp16 or bf16 [M, K].
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        bias: Floating point [N], or None.

    Returns:
        [M, N], dtype of `x`.
    """
    bias = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.linear(x, dequantize_weight(weight, weight_scale, x.dtype), bias)
