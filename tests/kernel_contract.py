"""What a backend must do: the rules, dtypes and sizes that every `int8_linear` is run with, and how far it may be off.

A backend computes what `llmint8.functional` does with the same codes: `expected` says that. Two results differ by the
order of fp32 sums, K + 8 roundings of the size of the terms; where 16-bit digits stand for floating point, by half a
step of those; and by one rounding to the dtype, which may fall on either side. `allowed` adds that up.
"""

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.outliers import OutlierRule

U = 2.0**-24
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULES = {
    "budget": OutlierRule("budget", budget=5, relative=True),
    "budget of more columns than there are": OutlierRule("budget", budget=400, symmetric=True),
    "budget with a floor": OutlierRule("budget", threshold=3.5, budget=5, relative=True),
    "threshold": OutlierRule("threshold", threshold=3.0),
    "threshold that nothing reaches": OutlierRule("threshold", threshold=1e9, symmetric=True),
    "static": OutlierRule("static", budget=3),
    "none": OutlierRule("none"),
    "none, symmetric": OutlierRule("none", symmetric=True),
}
ROWS = (1, 2, 5, 7, 8, 9, 16, 33, 130)
# K, N: no multiples of anything, and more than one tile.
SIZES = ((1, 1), (1, 64), (2, 1), (31, 7), (32, 129), (100, 64), (257, 7), (576, 130), (1300, 66))


def make_input(m: int, k: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Returns [M, K] with an outlier column and a row of zeros."""
    x = torch.randn(m, k, generator=generator)
    x[:, k // 2] *= 20
    x[m // 2] = 0
    return x.to(dtype)


def make_weight(n: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns int8 codes [N, K] and their scales."""
    return functional.quantize_rowwise(torch.randn(n, k, generator=generator))


def make_columns(rule: OutlierRule, k: int, generator: torch.Generator) -> Tensor | None:
    """Returns the outlier columns of mode static."""
    return torch.randperm(k, generator=generator)[: rule.budget] if rule.mode == "static" else None


def expected(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    columns: Tensor | None,
    rule: OutlierRule,
    decode_rows: int,
) -> Tensor:
    """Returns what a backend that leaves up to `decode_rows` rows unquantized computes."""
    if x.shape[0] <= decode_rows:
        return functional.weight_only_linear(x, weight, scale, bias)
    outliers = functional.select_outliers(x, columns, rule)
    return functional.mixed_linear(x, weight, scale, bias, outliers, rule.symmetric)


def allowed(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, result: Tensor, digits: bool = False
) -> Tensor:
    """Returns how far each element may be from `result`; `digits` where 16 bits stand for floating point."""
    w = functional.dequantize(weight, scale).abs()
    largest, total = x.float().abs().amax(1, keepdim=True), w.sum(1)
    size = x.float().abs() @ w.T + largest * total + (0 if bias is None else bias.float().abs())
    steps = largest / (127 * 256) / 2 * total if digits else 0
    info = torch.finfo(x.dtype)
    return 2 * (x.shape[1] + 8) * U * size + steps + info.eps * result.float().abs() + info.smallest_normal


def check(
    y: Tensor, result: Tensor, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, digits: bool = False
) -> None:
    """Fails if `y` is further from `result` than `allowed`, and says where."""
    assert y.dtype == x.dtype
    wrong = (y.float() - result.float()).abs() > allowed(x, weight, scale, bias, result, digits)
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()}, first at {wrong.nonzero()[0].tolist()}"
