"""The outlier columns of an input and of a weight, side by side, so that a product reads them 16 bytes at a time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.launch import launch
from llmint8.kernels.triton.quantize_rows import QuantizedRows


@triton.jit
def gather_columns(source, columns, n_columns, result, first, R, stride_source, stride_result, BLOCK_R, BLOCK_O):
    """Copies BLOCK_O of the columns of some rows; there are zeros behind the last one."""
    first_r = first.to(tl.int64) * BLOCK_R
    r = tl.arange(0, BLOCK_R)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_r = r < R - first * BLOCK_R
    column = tl.load(columns + o, mask=o < n_columns, other=0)
    source += first_r * stride_source
    values = tl.load(
        source + (r[:, None] * stride_source + column[None, :]),
        mask=inside_r[:, None] & (o < n_columns)[None, :],
        other=0,
    )
    result += first_r * stride_result
    tl.store(result + (r[:, None] * stride_result + o[None, :]), values, mask=inside_r[:, None])


@triton.jit(do_not_specialize=["M"])
def gather_outliers_kernel(
    x,
    weight,
    columns,
    count,
    x_outliers,
    weight_outliers,
    M,
    N,
    stride_xm,
    stride_weight,
    stride_outliers,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """The first programs copy from x, the others from the weight; those behind the last column have nothing to do."""
    n_columns = tl.load(count)
    if tl.program_id(1) * BLOCK_O < n_columns:
        x_blocks = tl.cdiv(M, BLOCK_R)
        first = tl.program_id(0)
        if first < x_blocks:
            gather_columns(x, columns, n_columns, x_outliers, first, M, stride_xm, stride_outliers, BLOCK_R, BLOCK_O)
        else:
            gather_columns(
                weight,
                columns,
                n_columns,
                weight_outliers,
                first - x_blocks,
                N,
                stride_weight,
                stride_outliers,
                BLOCK_R,
                BLOCK_O,
            )


def gather_outliers(x: Tensor, weight: Tensor, rows: QuantizedRows) -> tuple[Tensor, Tensor]:
    """Copies the outlier columns.

    Args:
        x: [M, K], what `rows` was made of.
        weight: int8 [N, K], each row contiguous.
        rows: With columns, as many as there may be.

    Returns:
        [M, most] and int8 [N, most], most a multiple of `tiles.GATHER.block_k`. Behind the last column there are zeros
        up to such a multiple, and then anything.
    """
    columns, n_columns = rows.columns, rows.n_columns
    assert columns is not None
    m, n, tile = x.shape[0], weight.shape[0], tiles.GATHER
    blocks = triton.cdiv(columns.numel(), tile.block_k)
    x_outliers = torch.empty(m, blocks * tile.block_k, dtype=x.dtype, device=x.device)
    weight_outliers = torch.empty(n, blocks * tile.block_k, dtype=torch.int8, device=x.device)
    launch(
        gather_outliers_kernel,
        (triton.cdiv(m, tile.block_n) + triton.cdiv(n, tile.block_n), blocks),
        x,
        weight,
        columns,
        n_columns,
        x_outliers,
        weight_outliers,
        m,
        n,
        x.stride(0),
        weight.stride(0),
        x_outliers.stride(0),
        BLOCK_R=tile.block_n,
        BLOCK_O=tile.block_k,
        **tile.options(tiles.architecture(x.device)),
    )
    return x_outliers, weight_outliers
