"""LLM.int8() in plain PyTorch: the reference for every operator, written to be read beside the paper.

Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", arXiv 2208.07339.

Shapes: input `x` [M, K] (M rows or tokens, K features), weight [N, K] (N output features), output [M, N]. Statistics,
scales and sums are fp32; the result is rounded once, to the dtype of `x`. A NaN or Inf in a row of `x` makes that row
of the output non-finite and no other.
"""

import torch
from torch import Tensor

from llmint8.outliers import OutlierRule

INT8_MAX = 127
INT8_MIN = -128
# The largest K whose sum of products of a code less its zero point (at most 255) and a weight (127) is below 2**31.
INT32_K = 1 << 16
# An fp32 sum of 1024 products of at most 128 * 127 stays below 2**24: every partial sum is an exact integer.
_EXACT_K = 1024
# A weight is widened to fp32 in blocks of about this many elements, 1 MiB: larger ones leave the cache, and the heap
# keeps them between the weights that are quantized in the meantime (1.9 GB instead of 1.3 GB for a model of 1.4 GB).
_BLOCK_ELEMENTS = 1 << 18
# A column this many times smaller (root mean square) than the median one has a code or two. Outlier features are 20 to
# 60 times as large as others.
_SMALL_COLUMN = 16
_SAMPLED_ROWS = 256
_MAX_EXPONENT = 8  # a 16-bit x keeps its digits


def absmax_scale(absmax: Tensor) -> Tensor:
    """Returns the step of a symmetric int8 code, `absmax / 127` (equation 1), or 1 where that is 0.

    Args:
        absmax: Largest magnitudes, fp32, any shape.
    """
    scale = absmax / INT8_MAX
    return torch.where(scale == 0, 1.0, scale)


def quantize_absmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes a whole tensor with one scale ("absmax quantization", section 2.1).

    Args:
        x: Floating point, any shape.

    Returns:
        int8 codes in [-127, 127] of the same shape, and the scale, fp32, no dimensions: `x` is about `codes * scale`.
    """
    x = x.float()
    scale = absmax_scale(x.abs().amax())
    return _round_to_int8(x / scale, -INT8_MAX), scale


def quantize_rowwise(x: Tensor, outliers: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantizes each row with a scale of its own (section 2.1; of a weight: "vector-wise", section 3.1).

    Args:
        x: Floating point [M, K].
        outliers: bool [K], columns that are left out of the scale and get the code 0.

    Returns:
        int8 codes [M, K] in [-127, 127], rounded half to even, and scales, fp32 [M, 1]. A row with a NaN or Inf
        outside the outlier columns has a non-finite scale.
    """
    x = _without(x.float(), outliers)
    scale = absmax_scale(x.abs().amax(dim=1, keepdim=True))
    return _round_to_int8(x / scale, -INT8_MAX), scale


def quantize_zeropoint(x: Tensor, outliers: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes each row over the full int8 range, asymmetrically ("zeropoint quantization", equations 2 to 4).

    The range always includes 0, so that the zero point is itself an int8 code and stands for 0 exactly.

    Args:
        x: Floating point [M, K].
        outliers: bool [K], columns that are left out of the range and get the zero point as their code.

    Returns:
        int8 codes [M, K] in [-128, 127], scales, fp32 [M, 1], and zero points, int32 [M, 1] in [-128, 127]: `x` is
        about `(codes - zero_point) * scale`. A row with a NaN or Inf outside the outlier columns has a non-finite
        scale.
    """
    x = _without(x.float(), outliers)
    low = x.amin(dim=1, keepdim=True).clamp(max=0)
    high = x.amax(dim=1, keepdim=True).clamp(min=0)
    levels = INT8_MAX - INT8_MIN
    scale = high / levels - low / levels
    scale = torch.where(scale == 0, 1.0, scale)
    zero_point = torch.round(INT8_MIN - low / scale).nan_to_num().clamp(INT8_MIN, INT8_MAX)
    return _round_to_int8(x / scale, INT8_MIN, zero_point), scale, zero_point.to(torch.int32)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns the values that int8 codes stand for, `(codes - zero_point) * scale`.

    Args:
        codes: int8, any shape.
        scale: fp32, broadcastable to `codes`.
        zero_point: int32, broadcastable to `codes`; None for symmetric codes.
        dtype: Dtype of the result; computed in fp32.
    """
    values = codes.float() if zero_point is None else codes.float() - zero_point
    return (values * scale).to(dtype)


def column_scale(weight: Tensor) -> Tensor | None:
    """Finds the columns of a weight that int8 would lose, being far smaller than the rest of their rows.

    A model that multiplies a feature by 50 in its norm has weights 50 times smaller to read it with, of which one
    scale per row leaves a code or two. They are quantized as `weight / column_scale` and read `x * column_scale`,
    which changes nothing in real numbers, nor in floating point, as the scales are powers of two. It also takes the
    outlier out of `x`.

    Args:
        weight: Floating point [N, K].

    Returns:
        fp32 [K], 1 for all other columns, or None if that is all of them.
    """
    rows = weight[:: max(1, weight.shape[0] // _SAMPLED_ROWS)].float()
    shares = rows / absmax_scale(rows.abs().amax(dim=1, keepdim=True))
    size = shares.square().mean(dim=0).sqrt()
    typical = size.median()
    small = (size > 0) & (size < typical / _SMALL_COLUMN)
    if not bool(small.any()):
        return None
    # No element may outgrow its row, of all rows: a few large ones may lie between those looked at.
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    shares = weight[:, small].abs().float() / torch.where(largest == 0, 1.0, largest)
    least = torch.log2(shares.amax(dim=0)).ceil()
    exponent = torch.log2(size[small] / typical).round().clamp(min=-_MAX_EXPONENT)
    scale = torch.ones_like(size)
    scale[small] = torch.exp2(torch.maximum(exponent, least))
    return scale if bool((scale < 1).any()) else None


def outlier_scores(x: Tensor, relative: bool = False) -> Tensor:
    """Scores each column by its largest magnitude, `max_m |x[m, k]|` (section 3.2).

    Args:
        x: Floating point [M, K].
        relative: Divides each magnitude by the root mean square of its row first.

    Returns:
        fp32 [K]. A NaN or Inf does not score: it spoils its own row and must not cost the others their outliers.
    """
    scores = x.float().abs()
    if relative:
        scores = scores / scores.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(scores < torch.inf, scores, 0.0).amax(dim=0)


def select_threshold(scores: Tensor, threshold: float) -> Tensor:
    """Returns the outlier columns of the paper, those that score `threshold` or more (section 3.2): bool [K].

    Args:
        scores: fp32 [K].
        threshold: In the unit of the scores.
    """
    return scores >= threshold


def select_budget(scores: Tensor, budget: int) -> Tensor:
    """Returns the `budget` columns with the largest scores, all if there are fewer: bool [K].

    Args:
        scores: fp32 [K].
        budget: Number of columns.
    """
    return select_columns(largest_columns(scores, budget), scores.numel())


def largest_columns(scores: Tensor, budget: int) -> Tensor:
    """Returns the indices of the `budget` largest scores, all if there are fewer: int64, in ascending order.

    Of equal scores, which 16-bit inputs have many of, the first ones count.

    Args:
        scores: fp32 [K].
        budget: Number of columns.
    """
    return scores.sort(descending=True, stable=True).indices[:budget].sort().values


def select_columns(columns: Tensor, k: int) -> Tensor:
    """Returns given outlier columns as a mask: bool [K].

    Args:
        columns: int64, indices in [0, K), any number.
        k: K.
    """
    return torch.zeros(k, dtype=torch.bool, device=columns.device).index_fill_(0, columns, True)


def select_outliers(x: Tensor, columns: Tensor | None, rule: OutlierRule) -> Tensor | None:
    """Returns the outlier columns of an input by a rule: bool [K], or None in mode `"none"`.

    Args:
        x: Floating point [M, K].
        columns: Those of mode `"static"`: int64, indices in [0, K).
        rule: In mode `"budget"`, the columns with the largest scores, if they reach the threshold.

    Raises:
        ValueError: The mode is unknown, or it is static and there are no columns.
    """
    if rule.mode == "threshold":
        return select_threshold(outlier_scores(x, rule.relative), rule.threshold)
    if rule.mode == "budget":
        scores = outlier_scores(x, rule.relative)
        return select_budget(scores, rule.budget) & select_threshold(scores, rule.threshold)
    if rule.mode == "static":
        if columns is None:
            raise ValueError(
                "mode 'static' needs columns that were found before; run llmint8.calibrate(model, batches)"
            )
        return select_columns(columns, x.shape[1])
    if rule.mode == "none":
        return None
    raise ValueError(f"mode must be 'threshold', 'budget', 'static' or 'none', got {rule.mode!r}")


def int8_matmul(codes_x: Tensor, codes_w: Tensor) -> Tensor:
    """Returns the exact int32 product of int8 matrices, `codes_x @ codes_w.T`.

    Args:
        codes_x: int8 [M, K].
        codes_w: int8 [N, K].

    Returns:
        int32 [M, N]; int64 if K > `INT32_K`.
    """
    dtype = torch.int32 if codes_x.shape[1] <= INT32_K else torch.int64
    product = torch.zeros(codes_x.shape[0], codes_w.shape[0], dtype=dtype, device=codes_x.device)
    for x, w in zip(codes_x.split(_EXACT_K, dim=1), codes_w.split(_EXACT_K, dim=1), strict=True):
        product += (x.float() @ w.float().T).to(dtype)
    return product


def vectorwise_linear(x: Tensor, codes_w: Tensor, scale_w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies an int8 weight to an input quantized row-wise, without outliers (equation 7).

    Args:
        x: Floating point [M, K].
        codes_w: int8 [N, K].
        scale_w: fp32 [N, 1].
        bias: Floating point [N].

    Returns:
        [M, N], dtype of `x`.
    """
    return mixed_linear(x, codes_w, scale_w, bias, outliers=None)


def mixed_linear(
    x: Tensor,
    codes_w: Tensor,
    scale_w: Tensor,
    bias: Tensor | None = None,
    outliers: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    """Applies an int8 weight by mixed-precision decomposition (equation 8).

    Outlier columns are multiplied in floating point, all others as int8 codes:
    `y = s_x s_w (q_x . q_w) + x_O . (s_w q_w)_O + bias`.

    Args:
        x: Floating point [M, K].
        codes_w: int8 [N, K].
        scale_w: fp32 [N, 1].
        bias: Floating point [N].
        outliers: bool [K]; None for no outlier columns.
        symmetric: Quantizes `x` by absmax; otherwise with a zero point `z_x`, which the product is corrected for by
            `- z_x * sum_k q_w[n, k]`.

    Returns:
        [M, N], dtype of `x`.
    """
    if symmetric:
        codes_x, scale_x = quantize_rowwise(x, outliers)
        product = int8_matmul(codes_x, codes_w)
    else:
        codes_x, scale_x, zero_point = quantize_zeropoint(x, outliers)
        product = int8_matmul(codes_x, codes_w)
        product -= zero_point.to(product.dtype) * codes_w.sum(dim=1, dtype=product.dtype)
    y = product.float() * scale_x * scale_w.T
    if outliers is not None:
        y += _without(x.float(), ~outliers) @ dequantize(codes_w, scale_w).T
    return _add_bias(y, bias).to(x.dtype)


def weight_only_linear(x: Tensor, codes_w: Tensor, scale_w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies an int8 weight to an input that is not quantized, `y = x . (s_w q_w) + bias`.

    This is `mixed_linear` with every column an outlier: for few rows, where reading the weight is the cost, it is as
    cheap and more accurate.

    Args:
        x: Floating point [M, K].
        codes_w: int8 [N, K].
        scale_w: fp32 [N, 1].
        bias: Floating point [N].

    Returns:
        [M, N], dtype of `x`.
    """
    y = torch.cat([x.float() @ codes_w[rows].float().T for rows in row_blocks(codes_w)], dim=1)
    return _add_bias(y * scale_w.T, bias).to(x.dtype)


def weight_only_grad_input(grad: Tensor, codes_w: Tensor, scale_w: Tensor) -> Tensor:
    """Returns the gradient to the input of `weight_only_linear`, `grad . (s_w q_w)`.

    Args:
        grad: Gradient to the output, floating point [M, N].
        codes_w: int8 [N, K].
        scale_w: fp32 [N, 1].

    Returns:
        [M, K], dtype of `grad`.
    """
    result = grad.new_zeros(grad.shape[0], codes_w.shape[1], dtype=torch.float32)
    scaled = grad.float() * scale_w.T
    for rows in row_blocks(codes_w):
        result += scaled[:, rows] @ codes_w[rows].float()
    return result.to(grad.dtype)


def row_blocks(weight: Tensor) -> list[slice]:
    """Returns the rows of a matrix [N, K] in blocks small enough to be widened to fp32 at once."""
    rows = max(1, _BLOCK_ELEMENTS // max(1, weight.shape[1]))
    return [slice(start, start + rows) for start in range(0, weight.shape[0], rows)]


def _without(x: Tensor, columns: Tensor | None) -> Tensor:
    return x if columns is None else x.masked_fill(columns, 0)


def _add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.float()


def _round_to_int8(steps: Tensor, low: int, zero_point: Tensor | float = 0) -> Tensor:
    # The code of a NaN does not matter, for its row has a non-finite scale, but the conversion must be defined.
    return (torch.round(steps) + zero_point).nan_to_num(0).clamp(low, INT8_MAX).to(torch.int8)
