"""Scores of the input columns, from which outlier columns are chosen (LLM.int8(), section 3.2)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.launch import launch

# Each program reduces its rows in registers and meets the others in one atomic a column.
PROGRAMS = 256


@triton.jit
def mean_square(row, K, BLOCK_K: tl.constexpr):
    """The mean square of a row that is too long for registers."""
    k = tl.arange(0, BLOCK_K)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, K, BLOCK_K):
        value = tl.load(row + start + k, mask=k < K - start, other=0.0).to(tl.float32)
        squares += value * value
    return tl.sum(squares, axis=0) / K


@triton.jit(do_not_specialize=["M", "rows_per_program", "least"])
def column_scores_kernel(
    x,
    scores,
    M,
    K,
    stride_m,
    rows_per_program,
    least,
    RELATIVE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
):
    """One program keeps the running maximum of BLOCK_K columns over some rows."""
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = tl.program_id(0) * rows_per_program
    largest = tl.zeros((BLOCK_K,), tl.float32)
    row = x + first.to(tl.int64) * stride_m
    for _ in range(first, tl.minimum(first + rows_per_program, M)):
        value = tl.abs(tl.load(row + k, mask=k < K, other=0.0).to(tl.float32))
        if RELATIVE:
            square = tl.sum(value * value, axis=0) / K if WHOLE_ROWS else mean_square(row, K, BLOCK_K)
            value = value / tl.sqrt_rn(square)
        # A NaN or Inf does not score: it spoils its own row and must not cost the others their outliers.
        largest = tl.maximum(largest, tl.where(value < float("inf"), value, 0.0))
        row += stride_m
    # Scores are not negative, so that their order is that of their bits. Few reach the threshold, and atomics are slow.
    score = largest.to(tl.int32, bitcast=True)
    tl.atomic_max(scores + k, score, mask=(k < K) & (score > 0) & (score >= least), sem="relaxed")


def column_scores(x: Tensor, relative: bool, least: int = 0) -> Tensor:
    """Returns `functional.outlier_scores` as the bits of fp32 numbers.

    Args:
        x: fp16, bf16 or fp32 [M, K], M and K at least 1, each row contiguous.
        relative: Divides each magnitude by the root mean square of its row first.
        least: Bits of the smallest score that matters.

    Returns:
        int32 [K], 0 for the scores that do not matter.
    """
    m, k = x.shape
    scores = torch.zeros(k, dtype=torch.int32, device=x.device)
    rows = triton.cdiv(m, PROGRAMS)
    tile = tiles.row_tile(k)
    launch(
        column_scores_kernel,
        (triton.cdiv(m, rows), triton.cdiv(k, tile.block_k)),
        x,
        scores,
        m,
        k,
        x.stride(0),
        rows,
        least,
        RELATIVE=relative,
        WHOLE_ROWS=k <= tile.block_k,
        BLOCK_K=tile.block_k,
        **tile.options(tiles.architecture(x.device)),
    )
    return scores
