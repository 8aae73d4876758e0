"""The int8 product with everything that belongs to it in one kernel (LLM.int8(), equation 8)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.choice import COLUMNS_OF_A_TURN, is_gathered
from llmint8.kernels.triton.gather_outliers import gather_outliers
from llmint8.kernels.triton.launch import launch
from llmint8.kernels.triton.products import add_outliers, operand_masks, scale_and_add_bias, tile_of_program
from llmint8.kernels.triton.quantize_rows import QuantizedRows


@triton.jit(do_not_specialize=["M"])
def mixed_linear_kernel(
    x,
    codes,
    scale,
    zero_point,
    columns,
    count,
    weight,
    weight_outliers,
    weight_scale,
    bias,
    y,
    M,
    N,
    K,
    stride_xm,
    stride_codes,
    stride_weight,
    stride_outliers,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    GROUP_M: tl.constexpr,
    UNROLL: tl.constexpr,
    EVEN_K: tl.constexpr,
    GATHERED: tl.constexpr,
):
    """One program computes one tile of y; of x, only the outlier columns are read."""
    tile_m, tile_n = tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # 64-bit arithmetic where a tile starts, 32 bits within it.
    first_m = tile_m.to(tl.int64) * BLOCK_M
    first_n = tile_n.to(tl.int64) * BLOCK_N
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside_m = m < M - tile_m * BLOCK_M
    inside_n = n < N - tile_n * BLOCK_N
    weight += first_n * stride_weight
    a_rows = codes + first_m * stride_codes + (m[:, None] * stride_codes + k[None, :])
    b_rows = weight + (n[None, :] * stride_weight + k[:, None])

    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    weight_sums = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, K, BLOCK_K * UNROLL):
        # Two products in a loop keep Triton from carrying operands, byte by byte, to the next turn (sm_80 to 89).
        for part in tl.static_range(UNROLL):
            mask_a, mask_b = operand_masks(inside_m, inside_n, k < K - start - part * BLOCK_K, EVEN_K)
            a = tl.load(a_rows + part * BLOCK_K, mask=mask_a, other=0)
            b = tl.load(b_rows + part * BLOCK_K, mask=mask_b, other=0)
            sums = tl.dot(a, b, sums, out_dtype=tl.int32)  # which Triton 3.6 does not infer
            if zero_point is not None:
                weight_sums += tl.sum(b.to(tl.int32), axis=0)
        a_rows += BLOCK_K * UNROLL
        b_rows += BLOCK_K * UNROLL

    if zero_point is not None:
        sums -= tl.load(zero_point + first_m + m, mask=inside_m, other=0)[:, None] * weight_sums[None, :]
    result = sums.to(tl.float32) * tl.load(scale + first_m + m, mask=inside_m, other=0.0)[:, None]
    if columns is not None:
        x += first_m * stride_xm
        if GATHERED:
            weight = weight_outliers + first_n * stride_outliers
            stride_weight = stride_outliers
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
            GATHERED,
        )
    result = scale_and_add_bias(result, weight_scale, bias, first_n + n, inside_n)
    y += first_m * N + first_n
    tl.store(y + (m[:, None] * N + n[None, :]), result.to(y.dtype.element_ty), mask=inside_m[:, None] & inside_n)


def mixed_linear(
    x: Tensor,
    rows: QuantizedRows,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    tile: tiles.Tile | None = None,
) -> Tensor:
    """Multiplies quantized rows and, in floating point, their outlier columns with an int8 weight.

    Args:
        x: fp16, bf16 or fp32 [M, K], what `rows` was made of.
        rows: Its codes.
        weight: int8 [N, K], each row contiguous.
        weight_scale: fp32 [N, 1], contiguous.
        bias: Floating point [N], contiguous, or None.
        tile: The one for the GPU and the sizes if None.

    Returns:
        [M, N], dtype of `x`.
    """
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    tile = tile or _tile(x, weight)
    gathered = is_gathered(_most_columns(rows), k, x.dtype)
    x_outliers, weight_outliers = gather_outliers(x, weight, rows) if gathered else (x, None)
    launch(
        mixed_linear_kernel,
        (triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n),),
        x_outliers,
        *rows,
        weight,
        weight_outliers,
        weight_scale,
        bias,
        y,
        m,
        n,
        k,
        x_outliers.stride(0),
        rows.codes.stride(0),
        weight.stride(0),
        0 if weight_outliers is None else weight_outliers.stride(0),
        BLOCK_O=COLUMNS_OF_A_TURN[x.dtype],
        UNROLL=tile.unroll,
        EVEN_K=k % (tile.block_k * tile.unroll) == 0,
        GATHERED=gathered,
        **tile.sizes,
        **tile.options(tiles.architecture(x.device)),
    )
    return y


def _most_columns(rows: QuantizedRows) -> int:
    """Returns how many outlier columns there may be; how many there are, only the device knows."""
    return 0 if rows.columns is None else rows.columns.numel()


def _tile(x: Tensor, weight: Tensor) -> tiles.Tile:
    table = tiles.tables(x.device).mixed_linear
    if not tiles.is_aligned(weight) or table is None:
        return tiles.UNALIGNED
    # Larger tiles of fp32 do not fit shared memory on their way out, if N is odd.
    return tiles.find(table, min(x.shape[0], tiles.FP32_ROWS) if x.dtype == torch.float32 else x.shape[0])
