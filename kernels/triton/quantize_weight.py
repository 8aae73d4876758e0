"""Vector-wise quantization of a weight (LLM.int8(), section 3.1): that of rows, without outliers."""

import torch
from torch import Tensor

from llmint8.kernels.triton.launch import on_device, with_contiguous_rows
from llmint8.kernels.triton.quantize_rows import quantize_rows
from llmint8.outliers import OutlierRule

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_ABSMAX = OutlierRule("none", symmetric=True)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Same as `torch.ops.llmint8.quantize_weight_fallback`, to the bit.

    Args:
        weight: fp16, bf16 or fp32 [N, K], N and K at least 1; others are not taken.

    Returns:
        int8 [N, K], contiguous, and fp32 [N, 1].
    """
    if weight.dtype not in _DTYPES or weight.dim() != 2 or weight.numel() == 0:
        return NotImplemented
    with on_device(weight):
        rows = quantize_rows(with_contiguous_rows(weight), None, _ABSMAX)
    # Of a single row, `contiguous` would keep the distance to the next one.
    codes = (
        rows.codes
        if rows.codes.stride(0) == weight.shape[1]
        else rows.codes.clone(memory_format=torch.contiguous_format)
    )
    return codes, rows.scale.unsqueeze(1)
