"""`int8_linear` in plain PyTorch."""

from torch import Tensor

from llmint8 import functional

# Up to this many rows the weight's bytes, not the arithmetic, set the time, so the input is left unquantized.
DECODE_ROWS = 8
# Rows per block of the int8 part: bounds its fp32 and int32 workspace.
BLOCK_ROWS = 2048


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    outlier_columns: Tensor | None,
    mode: str,
    threshold: float,
    budget: int,
    relative: bool,
    symmetric: bool,
) -> Tensor:
    """Applies an int8 weight to the rows of `x`; see `torch.ops.llmint8.int8_linear`.

    Args:
        x: [M, K], M and K at least 1.
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        bias: [N] or None.
        outlier_columns: int64, indices in [0, K), in mode `"static"`.
        mode: As in `llmint8.Int8Config`, like the rest.
        threshold: In the modes `"threshold"` and `"budget"`.
        budget: In mode `"budget"`.
        relative: Scores relative to the row.
        symmetric: Activations without zero point.

    Returns:
        [M, N], dtype of `x`.
    """
    if x.shape[0] <= DECODE_ROWS:
        return functional.weight_only_linear(x, weight, weight_scale, bias)
    outliers = functional.select_outliers(x, outlier_columns, mode, threshold, budget, relative)
    y = x.new_empty(x.shape[0], weight.shape[0])
    for rows, out in zip(x.split(BLOCK_ROWS), y.split(BLOCK_ROWS), strict=True):
        out.copy_(functional.mixed_linear(rows, weight, weight_scale, bias, outliers, symmetric))
    return y
