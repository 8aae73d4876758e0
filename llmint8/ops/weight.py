"""`quantize_weight` and `dequantize_weight`: a weight as int8 codes and scales, and back."""

from collections.abc import Callable

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.ops.checks import check_finite, check_weight
from llmint8.ops.registry import define


def quantize_weight(weight: Tensor, name: str = "the weight") -> tuple[Tensor, Tensor]:
    """Quantizes a weight vector-wise, one scale per output feature (section 3.1).

    Args:
        weight: Floating point [N, K].
        name: What the message of an error calls it.

    Returns:
        int8 codes [N, K] and scales, fp32 [N, 1].

    Raises:
        TypeError: The weight is not floating point.
        ValueError: It is not a matrix, or has a NaN or Inf.
    """
    if not weight.is_floating_point():
        raise TypeError(f"only a floating-point weight can be quantized, got {weight.dtype}")
    codes, scale = _quantize_weight.call(weight)
    check_finite(scale, f"{name} {list(weight.shape)}")  # a row with a NaN or Inf has no finite scale
    return codes, scale


def dequantize_weight(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the floating-point weight that int8 codes stand for.

    Args:
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        dtype: Dtype of the result.
    """
    return _dequantize_weight.call(weight, weight_scale, dtype)


def _quantize_fallback(weight: Tensor) -> tuple[Tensor, Tensor]:
    if weight.dim() != 2:
        raise ValueError(f"the weight must be [N, K], got {list(weight.shape)}")
    codes = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    scale = weight.new_ones(weight.shape[0], 1, dtype=torch.float32)
    if weight.shape[1] == 0:
        return codes, scale
    for rows in functional.row_blocks(weight):
        codes[rows], scale[rows] = functional.quantize_rowwise(weight[rows])
    return codes, scale


def _quantize_fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.new_empty(weight.shape[0], 1, dtype=torch.float32)
    return torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format), scale


def _dequantize_fallback(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    result = torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format)
    for rows in functional.row_blocks(weight):
        result[rows] = functional.dequantize(weight[rows], weight_scale[rows], dtype=dtype)
    return result


def _dequantize_fake(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    check_weight(weight, weight_scale)
    return torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format)


def _checked(kernel: Callable[..., Tensor], weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    check_weight(weight, weight_scale)
    return kernel(weight, weight_scale, dtype)


_quantize_weight = define(
    "quantize_weight", "(Tensor weight) -> (Tensor, Tensor)", fallback=_quantize_fallback, fake=_quantize_fake
)

_dequantize_weight = define(
    "dequantize_weight",
    "(Tensor weight, Tensor weight_scale, ScalarType dtype) -> Tensor",
    fallback=_dequantize_fallback,
    fake=_dequantize_fake,
    around=_checked,
)
