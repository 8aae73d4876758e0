"""Choice of outlier columns, and row-wise quantization of everything else (LLM.int8(), sections 2.1 and 3.2)."""

import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.column_scores import column_scores
from llmint8.kernels.triton.launch import launch
from llmint8.outliers import OutlierRule

# Each program chooses the outlier columns anew, which takes it a few microseconds and saves a launch and a wait.
PROGRAMS = 256

FP32_MAX = torch.finfo(torch.float32).max

NONE, THRESHOLD, BUDGET, STATIC = (tl.constexpr(i) for i in range(4))
MODES = {"none": NONE.value, "threshold": THRESHOLD.value, "budget": BUDGET.value, "static": STATIC.value}


class QuantizedRows(NamedTuple):
    """Codes of a matrix [M, K] and what it takes to multiply them.

    Attributes:
        codes: int8 [M, K], zero point in the outlier columns; the rows lie a multiple of 16 bytes apart.
            On request with a row of ones below: [M + 1, K].
        scale: fp32 [M].
        zero_point: int32 [M], or None for symmetric codes.
        columns: int32, the outlier columns in ascending order and then anything, or None if there are none.
        n_columns: int32 [1], the number of outlier columns, known to the device only.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    columns: Tensor | None
    n_columns: Tensor | None


@triton.jit
def round_to_even(x):
    """Rounds |x| < 2**22, half to even: an fp32 number above 2**23 has no digits after the point."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def count_ones(mask):
    """The number of ones."""
    return tl.sum(mask.to(tl.int32), axis=0)


@triton.jit
def count_scores(scores, kept, least, last, K, EQUAL: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE_ROWS: tl.constexpr):
    """The number of scores that are `least` or more or, with EQUAL, `least` and in a column up to `last`."""
    k = tl.arange(0, BLOCK_K)
    if WHOLE_ROWS:
        return count_ones((kept == least) & (k <= last) if EQUAL else kept >= least)
    else:
        count = 0
        for start in range(0, K, BLOCK_K):
            kept = tl.load(scores + start + k, mask=k < K - start, other=-1)
            count += count_ones((kept == least) & (start + k <= last) if EQUAL else kept >= least)
        return count


@triton.jit
def select_budget(scores, K, N_BUDGET: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE_ROWS: tl.constexpr):
    """The least of the N_BUDGET largest scores, and the last column that may have it: of equals, the first count."""
    k = tl.arange(0, BLOCK_K)
    kept = tl.load(scores + k, mask=k < K, other=-1)
    least = 0  # bit by bit, from the top
    for bit in range(31):
        higher = least | (1 << (30 - bit))
        if count_scores(scores, kept, higher, 0, K, False, BLOCK_K, WHOLE_ROWS) >= N_BUDGET:
            least = higher
    wanted = N_BUDGET - count_scores(scores, kept, least + 1, 0, K, False, BLOCK_K, WHOLE_ROWS)
    last = K
    if count_scores(scores, kept, least, K, K, True, BLOCK_K, WHOLE_ROWS) > wanted:
        last = 0  # the largest column up to which there are fewer than wanted, and then one more
        for bit in range(17):
            further = last + (1 << (16 - bit))
            if count_scores(scores, kept, least, further - 1, K, True, BLOCK_K, WHOLE_ROWS) < wanted:
                last = further
    return least, last


@triton.jit
def is_outlier(scores, static_columns, k, K, least, last, n_static, MODE: tl.constexpr):
    """Marks the outlier columns among the columns `k`."""
    if MODE == STATIC:
        outlier = k < 0
        for i in range(n_static):
            outlier = outlier | (k == tl.load(static_columns + i))
        return outlier & (k < K)
    else:
        kept = tl.load(scores + k, mask=k < K, other=-1)
        return (kept > least) | ((kept == least) & (k <= last))


@triton.jit
def load_without_outliers(row, scores, static_columns, k, K, least, last, n_static, MODE: tl.constexpr):
    """The features `k` of a row in fp32, 0 in its outlier columns."""
    value = tl.load(row + k, mask=k < K, other=0.0).to(tl.float32)
    if MODE != NONE:
        value = tl.where(is_outlier(scores, static_columns, k, K, least, last, n_static, MODE), 0.0, value)
    return value


@triton.jit
def list_outliers(
    scores, static_columns, columns, count, K, least, last, n_static, MODE: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes the outlier columns in ascending order, and their number."""
    found = 0
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        outlier = is_outlier(scores, static_columns, k, K, least, last, n_static, MODE).to(tl.int32)
        tl.store(columns + found + tl.cumsum(outlier, axis=0) - 1, k, mask=outlier > 0)
        found += tl.sum(outlier, axis=0)
    tl.store(count, found)


@triton.jit
def step_and_zero_point(low, high, spoilt, SYMMETRIC: tl.constexpr):
    """The scale of a row and its zero point, from its smallest and largest value."""
    if SYMMETRIC:
        step = tl.div_rn(tl.maximum(high, -low), 127.0)
        zero = 0.0
    else:
        step = tl.div_rn(high, 255.0) - tl.div_rn(low, 255.0)
    step = tl.where(step == 0.0, 1.0, step) + spoilt
    if not SYMMETRIC:
        zero = round_to_even(-128.0 - tl.div_rn(low, step))
        zero = tl.minimum(tl.maximum(tl.where(zero == zero, zero, 0.0), -128.0), 127.0)
    return step, zero


@triton.jit
def quantize(value, step, zero, SYMMETRIC: tl.constexpr):
    """int8 codes; the code of a NaN does not matter, for its row has a non-finite scale."""
    q = round_to_even(tl.div_rn(value, step + tl.zeros_like(value))) + zero
    return tl.minimum(tl.maximum(tl.where(q == q, q, 0.0), -127.0 if SYMMETRIC else -128.0), 127.0).to(tl.int8)


@triton.jit(do_not_specialize=["M", "rows_per_program", "least", "n_static"])
def quantize_rows_kernel(
    x,
    scores,
    static_columns,
    codes,
    scale,
    zero_point,
    columns,
    count,
    M,
    K,
    stride_m,
    stride_codes,
    rows_per_program,
    least,
    n_static,
    MODE: tl.constexpr,
    N_BUDGET: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ONES_ROW: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
):
    """One program quantizes some rows; the first one also lists the outlier columns."""
    k = tl.arange(0, BLOCK_K)
    last = K
    if MODE == BUDGET:
        # Most inputs have fewer columns above the threshold than the budget: nothing has to be chosen.
        kept = tl.load(scores + k, mask=k < K, other=-1)
        if count_scores(scores, kept, least, 0, K, False, BLOCK_K, WHOLE_ROWS) > N_BUDGET:
            least, last = select_budget(scores, K, N_BUDGET, BLOCK_K, WHOLE_ROWS)
    if MODE != NONE:
        if tl.program_id(0) == 0:
            list_outliers(scores, static_columns, columns, count, K, least, last, n_static, MODE, min(BLOCK_K, 1024))
        if WHOLE_ROWS:
            outlier = is_outlier(scores, static_columns, k, K, least, last, n_static, MODE)
    if ONES_ROW and tl.program_id(0) == 0:
        for start in range(0, K, BLOCK_K):
            ones = codes + M.to(tl.int64) * stride_codes + start + k
            tl.store(ones, tl.full((BLOCK_K,), 1, tl.int8), mask=start + k < K)
    first = tl.program_id(0) * rows_per_program
    row = x + first.to(tl.int64) * stride_m
    out = codes + first.to(tl.int64) * stride_codes
    for m in range(first, tl.minimum(first + rows_per_program, M)):
        if WHOLE_ROWS:
            value = tl.load(row + k, mask=k < K, other=0.0).to(tl.float32)
            if MODE != NONE:
                value = tl.where(outlier, 0.0, value)
            low = tl.minimum(tl.min(value, axis=0), 0.0)
            high = tl.maximum(tl.max(value, axis=0), 0.0)
            spoilt = tl.sum(value * 0.0, axis=0)  # NaN if there is a NaN or Inf, which tl.max and tl.min pass over
            step, zero = step_and_zero_point(low, high, spoilt, SYMMETRIC)
            tl.store(out + k, quantize(value, step, zero, SYMMETRIC), mask=k < K)
        else:
            lows = tl.zeros((BLOCK_K,), tl.float32)
            highs = tl.zeros((BLOCK_K,), tl.float32)
            spoils = tl.zeros((BLOCK_K,), tl.float32)
            for start in range(0, K, BLOCK_K):
                value = load_without_outliers(row, scores, static_columns, start + k, K, least, last, n_static, MODE)
                lows = tl.minimum(lows, value)
                highs = tl.maximum(highs, value)
                spoils += value * 0.0
            low, high, spoilt = tl.min(lows, axis=0), tl.max(highs, axis=0), tl.sum(spoils, axis=0)
            step, zero = step_and_zero_point(low, high, spoilt, SYMMETRIC)
            for start in range(0, K, BLOCK_K):
                value = load_without_outliers(row, scores, static_columns, start + k, K, least, last, n_static, MODE)
                tl.store(out + start + k, quantize(value, step, zero, SYMMETRIC), mask=start + k < K)
        tl.store(scale + m, step)
        if not SYMMETRIC:
            tl.store(zero_point + m, zero.to(tl.int32))
        row += stride_m
        out += stride_codes


def quantize_rows(
    x: Tensor,
    static_columns: Tensor | None,
    rule: OutlierRule,
    ones_row: bool = False,
) -> QuantizedRows:
    """Quantizes each row with a scale of its own, leaving the outlier columns out.

    Args:
        x: fp16, bf16 or fp32 [M, K], M and K at least 1, each row contiguous.
        static_columns: int64 [n], contiguous, in mode `"static"`.
        rule: The treatment of outlier columns; in mode `"budget"`, a budget of at least 1.
        ones_row: Adds a row of ones below the codes.

    Returns:
        The codes and what belongs to them.
    """
    m, k = x.shape
    stride = triton.cdiv(k, tiles.ALIGNMENT) * tiles.ALIGNMENT
    codes = torch.empty(m + ones_row, stride, dtype=torch.int8, device=x.device).narrow(1, 0, k)
    scale = torch.empty(m, dtype=torch.float32, device=x.device)
    zero_point = None if rule.symmetric else torch.empty(m, dtype=torch.int32, device=x.device)
    least = fp32_bits(rule.threshold)
    scores = column_scores(x, rule.relative, least) if rule.mode in ("threshold", "budget") else None
    n_static = static_columns.numel() if rule.mode == "static" and static_columns is not None else 0
    columns = count = None
    if rule.mode != "none":
        most = {"threshold": k, "budget": rule.budget, "static": n_static}[rule.mode]
        columns = torch.empty(max(1, min(most, k)), dtype=torch.int32, device=x.device)
        count = torch.empty(1, dtype=torch.int32, device=x.device)
    rows = triton.cdiv(m, PROGRAMS)
    tile = tiles.row_tile(k)
    launch(
        quantize_rows_kernel,
        (triton.cdiv(m, rows),),
        x,
        scores,
        static_columns,
        codes,
        scale,
        zero_point,
        columns,
        count,
        m,
        k,
        x.stride(0),
        stride,
        rows,
        least,
        n_static,
        MODE=MODES[rule.mode],
        N_BUDGET=min(rule.budget, k) if rule.mode == "budget" else 0,
        SYMMETRIC=rule.symmetric,
        ONES_ROW=ones_row,
        WHOLE_ROWS=k <= tile.block_k,
        BLOCK_K=tile.block_k,
        **tile.options(tiles.architecture(x.device)),
    )
    return QuantizedRows(codes, scale, zero_point, columns, count)


def fp32_bits(x: float) -> int:
    """Returns the bits of the fp32 number nearest to x, 0 for a negative one: their order is that of the numbers."""
    return struct.unpack("<i", struct.pack("<f", min(max(x, 0.0), FP32_MAX)))[0]
