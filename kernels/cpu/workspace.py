"""Memory that the native operators take while they run, beyond what they return: what their C++ allocates."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llmint8.kernels.cpu.limits import (
    ALIGNMENT,
    DECODE_ROWS,
    DIGITS,
    FEW_OUTLIERS,
    FEW_QUERIES,
    KEY_PANEL,
    PREFILL_ROWS,
)
from llmint8.outliers import OutlierRule


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _code_stride(columns: int) -> int:
    """`code_stride` in csrc/kernels.h."""
    lines = -(-columns // ALIGNMENT)
    return ALIGNMENT * (lines | 1 if lines <= 32 else lines + (24 - lines % 16) % 16)


def _codes(rows: int, columns: int, rule: OutlierRule) -> int:
    """`prefill` and `decode` in csrc/linear.h: codes of rows, digits of as many outliers as there may be.

    A code is a byte where the processor multiplies bytes; with AVX2 alone it has two. How many columns a threshold
    finds is not known before.
    """
    if rows <= DECODE_ROWS:
        return DIGITS * rows * _code_stride(columns)
    budget = rule.budget if rule.mode in ("budget", "static") else 0
    outliers = 4 * budget if budget <= FEW_OUTLIERS else DIGITS * _code_stride(budget)
    return min(rows, PREFILL_ROWS) * (_code_stride(columns) + outliers)


def _int8_linear(args: tuple[Any, ...]) -> int:
    x, rule = args[0], OutlierRule(*args[-5:])
    return _codes(_rows(x), x.shape[-1], rule)


def _gated_mlp(args: tuple[Any, ...]) -> int:
    x, weights, *_, down_budget = args[:-5]
    rule = OutlierRule(*args[-5:])
    rows, hidden = _rows(x), weights[1].shape[0]
    between = rows * hidden * x.element_size()
    first = _codes(rows, x.shape[-1], rule)
    return int(between + max(first, _codes(rows, hidden, rule._replace(budget=down_budget))))


def _attention(args: tuple[Any, ...]) -> int:
    """`attention` in csrc/model_operators.cpp: keys and values in fp32, in whole panels."""
    query, key, *_ = args
    if query.shape[2] <= FEW_QUERIES:
        return 0
    batch, key_heads, keys, depth = key.shape
    up = -(-keys // KEY_PANEL) * KEY_PANEL
    return int(4 * batch * key_heads * up * (depth + -(-depth // KEY_PANEL) * KEY_PANEL))


def workspace(operator: str, args: tuple[Any, ...], architecture: int | str | None) -> int:
    """Returns the most that an operator takes besides its arguments and results, in bytes.

    Args:
        operator: Its name without the namespace.
        args: Its arguments; tensors on the meta device will do.
        architecture: Makes no difference on a CPU.
    """
    known = _WORKSPACES.get(operator)
    return 0 if known is None else known(args)


_WORKSPACES: dict[str, Callable[[tuple[Any, ...]], int]] = {
    "attention": _attention,
    "gated_mlp": _gated_mlp,
    "int8_linear": _int8_linear,
    "int8_linears": _int8_linear,
}
