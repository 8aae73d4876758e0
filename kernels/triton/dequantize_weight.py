"""The floating-point weight that int8 codes stand for."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.launch import launch, on_device, with_contiguous_rows

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit(do_not_specialize=["N"])
def dequantize_weight_kernel(
    weight,
    weight_scale,
    result,
    N,
    K,
    stride_weight,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program converts one tile."""
    first_n = tl.program_id(0).to(tl.int64) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside_n = n < N - tl.program_id(0) * BLOCK_N
    inside = inside_n[:, None] & (k < K)[None, :]
    codes = tl.load(weight + first_n * stride_weight + (n[:, None] * stride_weight + k[None, :]), mask=inside, other=0)
    values = codes.to(tl.float32) * tl.load(weight_scale + first_n + n, mask=inside_n, other=0.0)[:, None]
    result += first_n * K
    tl.store(result + (n[:, None] * K + k[None, :]), values.to(result.dtype.element_ty), mask=inside)


def dequantize_weight(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `weight * weight_scale`, computed in fp32.

    Args:
        weight: int8 [N, K], N and K at least 1; others are not taken.
        weight_scale: fp32 [N, 1].
        dtype: fp16, bf16 or fp32; others are not taken.

    Returns:
        [N, K], contiguous.
    """
    if dtype not in _DTYPES or weight.numel() == 0:
        return NotImplemented
    weight, weight_scale = with_contiguous_rows(weight), weight_scale.contiguous()
    n, k = weight.shape
    result = torch.empty(n, k, dtype=dtype, device=weight.device)
    tile = tiles.DEQUANTIZE
    grid = triton.cdiv(n, tile.block_n), triton.cdiv(k, tile.block_k)
    with on_device(weight):
        launch(
            dequantize_weight_kernel,
            grid,
            weight,
            weight_scale,
            result,
            n,
            k,
            weight.stride(0),
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            **tile.options(tiles.architecture(weight.device)),
        )
    return result
