"""Memory that the operators take on a GPU while they run, beyond what they return; needs no Triton and no GPU."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.choice import choose_product, is_gathered
from llmint8.outliers import OutlierRule


def decides(architecture: int | str) -> tuple[bool, int, bool, bool]:
    """Returns what the workspace depends on: GPUs for which it is the same take the same memory.

    Args:
        architecture: Compute capability (80 for 8.0), or AMD's name.
    """
    tables = tiles.built_in(architecture)
    return tables.mixed_linear is not None, tables.decode_rows, tables.dequantize, tables.int_mm


def _int8_linear(args: tuple[Any, ...], tables: tiles.Tables) -> int:
    """What the product that `choose_product` names allocates for [..., K] and [N, K]."""
    x, weight, rule = args[0], args[1], OutlierRule(*args[-5:])
    rows, (n, k) = x.numel() // max(1, x.shape[-1]), weight.shape
    product = choose_product(x.new_empty(rows, k, device="meta"), weight, tables)
    if product == "weight_only_linear":
        return 0
    if product == "dequantized_linear":
        return int(n * k * x.element_size())
    if product == "int_mm_linear":
        rows += not rule.symmetric  # a row of ones
        return _quantized_rows(rows, k, rule, args[4]) + 4 * rows * n
    return _quantized_rows(rows, k, rule, args[4]) + _gathered(x, rows, n, k, rule, args[4])


def _quantized_rows(rows: int, k: int, rule: OutlierRule, columns: Tensor | None) -> int:
    """`quantize_rows`: codes, a scale and a zero point for each row, and the scores and the list of the columns."""
    codes = rows * -(-k // tiles.ALIGNMENT) * tiles.ALIGNMENT
    scores = 4 * k if rule.mode in ("budget", "threshold") else 0
    listed = 0 if rule.mode == "none" else 4 * max(1, _most_columns(k, rule, columns)) + 4
    return codes + (4 if rule.symmetric else 8) * rows + scores + listed


def _gathered(x: Tensor, rows: int, n: int, k: int, rule: OutlierRule, columns: Tensor | None) -> int:
    """`gather_outliers`: the outlier columns of the input and of the weight, side by side."""
    most = _most_columns(k, rule, columns)
    if not is_gathered(most, k, x.dtype):
        return 0
    width = -(-most // tiles.GATHER.block_k) * tiles.GATHER.block_k
    return width * (rows * x.element_size() + n)


def _most_columns(k: int, rule: OutlierRule, columns: Tensor | None) -> int:
    static = 0 if columns is None else columns.numel()
    return min(k, {"none": 0, "threshold": k, "budget": rule.budget, "static": static}[rule.mode])


def workspace(operator: str, args: tuple[Any, ...], architecture: int | str | None) -> int:
    """Returns the most that an operator takes besides its arguments and results, in bytes.

    Args:
        operator: Its name without the namespace.
        args: Its arguments; tensors on the meta device will do.
        architecture: Compute capability (80 for 8.0), or AMD's name; 8.0 if None.
    """
    known = _WORKSPACES.get(operator)
    return 0 if known is None else known(args, tiles.built_in(architecture or 80))


_WORKSPACES: dict[str, Callable[[tuple[Any, ...], tiles.Tables], int]] = {"int8_linear": _int8_linear}
