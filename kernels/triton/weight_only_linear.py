"""The product of rows that are not quantized with an int8 weight, for decoding."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.launch import launch
from llmint8.kernels.triton.products import add_product, operand_masks, scale_and_add_bias, tile_of_program


@triton.jit
def one_row_kernel(
    x,
    weight,
    weight_scale,
    bias,
    y,
    N,
    K,
    stride_weight,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One program reads some rows of the weight, each byte once, and keeps its sums apart until the end."""
    first_n = tl.program_id(0).to(tl.int64) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside_n = n < N - tl.program_id(0) * BLOCK_N
    rows = weight + first_n * stride_weight + (n[:, None] * stride_weight + k[None, :])
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            w = tl.load(rows, mask=inside_n[:, None], other=0, eviction_policy="evict_first")
            value = tl.load(x + start + k, eviction_policy="evict_last")
        else:
            inside_k = k < K - start
            w = tl.load(rows, mask=inside_n[:, None] & inside_k, other=0, eviction_policy="evict_first")
            value = tl.load(x + start + k, mask=inside_k, other=0.0, eviction_policy="evict_last")
        sums += w.to(tl.float32) * value.to(tl.float32)[None, :]
        rows += BLOCK_K
    result = tl.sum(sums, axis=1) * tl.load(weight_scale + first_n + n, mask=inside_n, other=0.0)
    if bias is not None:
        result += tl.load(bias + first_n + n, mask=inside_n, other=0.0).to(tl.float32)
    tl.store(y + first_n + n, result.to(y.dtype.element_ty), mask=inside_n)


@triton.jit(do_not_specialize=["M"])
def weight_only_linear_kernel(
    x,
    weight,
    weight_scale,
    bias,
    y,
    M,
    N,
    K,
    stride_xm,
    stride_weight,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    UNROLL: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One program computes one tile of y; the weight becomes floating point on its way to the tensor cores."""
    tile_m, tile_n = tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    first_m = tile_m.to(tl.int64) * BLOCK_M
    first_n = tile_n.to(tl.int64) * BLOCK_N
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside_m = m < M - tile_m * BLOCK_M
    inside_n = n < N - tile_n * BLOCK_N
    a_rows = x + first_m * stride_xm + (m[:, None] * stride_xm + k[None, :])
    b_rows = weight + first_n * stride_weight + (n[None, :] * stride_weight + k[:, None])
    result = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K * UNROLL):
        for part in tl.static_range(UNROLL):  # as in mixed_linear_kernel
            mask_a, mask_b = operand_masks(inside_m, inside_n, k < K - start - part * BLOCK_K, EVEN_K)
            a = tl.load(a_rows + part * BLOCK_K, mask=mask_a, other=0.0, eviction_policy="evict_last")
            b = tl.load(b_rows + part * BLOCK_K, mask=mask_b, other=0, eviction_policy="evict_first")
            result = add_product(a, b, result)
        a_rows += BLOCK_K * UNROLL
        b_rows += BLOCK_K * UNROLL
    result = scale_and_add_bias(result, weight_scale, bias, first_n + n, inside_n)
    y += first_m * N + first_n
    tl.store(y + (m[:, None] * N + n[None, :]), result.to(y.dtype.element_ty), mask=inside_m[:, None] & inside_n)


def weight_only_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, tile: tiles.Tile | None = None
) -> Tensor:
    """Returns `functional.weight_only_linear`, in one launch.

    Args:
        x: fp16, bf16 or fp32 [M, K], M at least 1, each row contiguous.
        weight: int8 [N, K], each row contiguous.
        weight_scale: fp32 [N, 1], contiguous.
        bias: Floating point [N], contiguous, or None.
        tile: The one for the GPU and the sizes if None.

    Returns:
        [M, N], dtype of `x`.
    """
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    tables, architecture = tiles.tables(x.device), tiles.architecture(x.device)
    if m == 1:
        tile = tile or tiles.find(tables.one_row, n)
        block_k = min(tile.block_k, max(128, 1 << (k - 1).bit_length()))
        launch(
            one_row_kernel,
            (triton.cdiv(n, tile.block_n),),
            x,
            weight,
            weight_scale,
            bias,
            y,
            n,
            k,
            weight.stride(0),
            BLOCK_N=tile.block_n,
            BLOCK_K=block_k,
            EVEN_K=k % block_k == 0,
            **tile.options(architecture),
        )
        return y
    if tile is None:
        tile = tiles.find(tables.weight_only_linear, m) if tiles.is_aligned(weight) else tiles.UNALIGNED
    launch(
        weight_only_linear_kernel,
        (triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n),),
        x,
        weight,
        weight_scale,
        bias,
        y,
        m,
        n,
        k,
        x.stride(0),
        weight.stride(0),
        UNROLL=tile.unroll,
        EVEN_K=k % (tile.block_k * tile.unroll) == 0,
        **tile.sizes,
        **tile.options(architecture),
    )
    return y
