"""`int8_linear` in plain PyTorch."""

from torch import Tensor

from llmint8 import functional
from llmint8.kernels.cpu.limits import DECODE_ROWS
from llmint8.outliers import OutlierRule

# Rows per block of the int8 part: bounds its fp32 and int32 workspace.
BLOCK_ROWS = 2048


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    outlier_columns: Tensor | None,
    rule: OutlierRule,
) -> Tensor:
    """Applies an int8 weight to the rows of `x`; see `llmint8.ops.int8_linear`.

    Up to `DECODE_ROWS` rows stay unquantized, as everywhere on a CPU.

    Args:
        x: [M, K], M and K at least 1.
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        bias: [N] or None.
        outlier_columns: int64, indices in [0, K), in mode `"static"`.
        rule: The treatment of outlier columns.

    Returns:
        [M, N], dtype of `x`.
    """
    if x.shape[0] <= DECODE_ROWS:
        return functional.weight_only_linear(x, weight, weight_scale, bias)
    outliers = functional.select_outliers(x, outlier_columns, rule)
    y = x.new_empty(x.shape[0], weight.shape[0])
    for rows, out in zip(x.split(BLOCK_ROWS), y.split(BLOCK_ROWS), strict=True):
        out.copy_(functional.mixed_linear(rows, weight, weight_scale, bias, outliers, rule.symmetric))
    return y
