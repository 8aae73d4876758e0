"""The int8 product by PyTorch (cuBLASLt) for GPUs whose int8 tensor cores Triton does not reach: sm_75."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.launch import launch
from llmint8.kernels.triton.products import add_outliers, scale_and_add_bias
from llmint8.kernels.triton.quantize_rows import QuantizedRows


@triton.jit(do_not_specialize=["M"])
def scale_product_kernel(
    x,
    product,
    scale,
    zero_point,
    columns,
    count,
    weight,
    weight_scale,
    bias,
    y,
    M,
    N,
    stride_xm,
    stride_weight,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """One program turns one tile of the int32 product into y, as the end of mixed_linear_kernel does."""
    first_m = tl.program_id(0).to(tl.int64) * BLOCK_M
    first_n = tl.program_id(1).to(tl.int64) * BLOCK_N
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    inside_m = m < M - tl.program_id(0) * BLOCK_M
    inside_n = n < N - tl.program_id(1) * BLOCK_N
    inside = inside_m[:, None] & inside_n[None, :]
    offsets = first_m * N + first_n + (m[:, None] * N + n[None, :])
    sums = tl.load(product + offsets, mask=inside, other=0)
    if zero_point is not None:
        weight_sums = tl.load(product + M.to(tl.int64) * N + first_n + n, mask=inside_n, other=0)
        sums -= tl.load(zero_point + first_m + m, mask=inside_m, other=0)[:, None] * weight_sums[None, :]
    result = sums.to(tl.float32) * tl.load(scale + first_m + m, mask=inside_m, other=0.0)[:, None]
    if columns is not None:
        x += first_m * stride_xm
        weight += first_n * stride_weight
        result = add_outliers(
            x,
            weight,
            columns,
            count,
            result,
            inside_m,
            inside_n,
            stride_xm,
            stride_weight,
            BLOCK_M,
            BLOCK_N,
            BLOCK_O,
            False,
        )
    result = scale_and_add_bias(result, weight_scale, bias, first_n + n, inside_n)
    tl.store(y + offsets, result.to(y.dtype.element_ty), mask=inside)


def int_mm_linear(x: Tensor, rows: QuantizedRows, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Same as `mixed_linear`, by two kernels and with the int32 product in memory.

    Args:
        x: fp16, bf16 or fp32 [M, K], for which `choose_product` has chosen it.
        rows: Its codes, with a row of ones below them if they have zero points: its products are the sums of the
            weight.
        weight: int8 [N, K], contiguous.
        weight_scale: fp32 [N, 1], contiguous.
        bias: Floating point [N], contiguous, or None.

    Returns:
        [M, N], dtype of `x`.
    """
    m, n = x.shape[0], weight.shape[0]
    product = torch._int_mm(rows.codes, weight.T)
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    tile = tiles.SCALE_PRODUCT
    launch(
        scale_product_kernel,
        (triton.cdiv(m, tile.block_m), triton.cdiv(n, tile.block_n)),
        x,
        product,
        *rows[1:],
        weight,
        weight_scale,
        bias,
        y,
        m,
        n,
        x.stride(0),
        weight.stride(0),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_O=16,
        **tile.options(tiles.architecture(x.device)),
    )
    return y
