"""Memory that operators take while they run, beyond what they return: what the kernels allocate, by their shapes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

# Constants of kernels/cpu/csrc/linear.h and kernels.h.
_DECODE_ROWS = 8
_PREFILL_ROWS = 2048
_DIGITS = 3  # of a byte each, where the processor multiplies bytes; with AVX2 alone they have two
_FEW_OUTLIERS = 32
_PANEL = 32  # of keys that attention packs
_FEW_QUERIES = 4


def buffer_bytes(name: str, args: tuple[Any, ...], device: str) -> int:
    """Returns the most that an operator takes besides its arguments and results, in bytes.

    Args:
        name: Of the operator, with its namespace: `"llmint8::int8_linear"`. Others than ours take nothing.
        args: Its positional arguments.
        device: `"cpu"` for the native kernels, `"cuda"` for those in Triton.
    """
    known = (_CPU if device == "cpu" else _CUDA).get(name)
    return 0 if known is None else known(args)


def attention_bytes(query: Tensor, key: Tensor, value: Tensor, device: str) -> int:
    """Returns what PyTorch's attention takes besides its result: the log of the sum of each query's weights, fp32.

    On a CPU, values of another depth than keys leave it two matrices of scores.

    Args:
        query: [batch, heads, M, depth].
        key: [batch, key_heads, S, depth].
        value: [batch, key_heads, S, value_depth].
        device: As above.
    """
    rows = _rows(query)
    scores = 2 * rows * key.shape[-2] * query.element_size()
    return 4 * rows + (scores if device == "cpu" and query.shape[-1] != value.shape[-1] else 0)


def _codes(rows: int, columns: int, budget: int) -> int:
    """`prefill` and `decode` in kernels/cpu/csrc/linear.h: codes of rows, digits of as many outliers as may be."""
    if rows <= _DECODE_ROWS:
        return _DIGITS * rows * _code_stride(columns)
    most = min(rows, _PREFILL_ROWS)
    outliers = 4 * budget if budget <= _FEW_OUTLIERS else _DIGITS * _code_stride(budget)
    return most * (_code_stride(columns) + outliers)


def _code_stride(columns: int) -> int:
    """`code_stride` in kernels/cpu/csrc/kernels.h."""
    lines = -(-columns // 64)
    return 64 * (lines | 1 if lines <= 32 else lines + (24 - lines % 16) % 16)


def _rows(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[-1])


def _budget(mode: str, budget: int) -> int:
    return budget if mode in ("budget", "static") else 0


def _cpu_linear(args: tuple[Any, ...]) -> int:
    x, *_, mode, _, budget, _, _ = args
    return _codes(_rows(x), x.shape[-1], _budget(mode, budget))


def _cpu_gated_mlp(args: tuple[Any, ...]) -> int:
    x, weights, *_, down_budget, mode, _, budget, _, _ = args
    rows, hidden = _rows(x), weights[1].shape[0]
    between = rows * hidden * x.element_size()
    first = _codes(rows, x.shape[-1], _budget(mode, budget))
    return between + max(first, _codes(rows, hidden, _budget(mode, down_budget)))


def _cpu_attention(args: tuple[Any, ...]) -> int:
    """`attention` in kernels/cpu/csrc/model_operators.cpp: keys and values in fp32, in whole panels."""
    query, key, *_ = args
    if query.shape[2] <= _FEW_QUERIES:
        return 0
    batch, key_heads, keys, depth = key.shape
    up = -(-keys // _PANEL) * _PANEL
    return 4 * batch * key_heads * up * (depth + -(-depth // _PANEL) * _PANEL)


def _cuda_linear(args: tuple[Any, ...]) -> int:
    """`quantize_rows` in kernels/triton: codes of all rows, with a scale and a zero point each."""
    x = args[0]
    return _rows(x) * (x.shape[-1] + 8)


_CPU: dict[str, Callable[[tuple[Any, ...]], int]] = {
    "llmint8::attention": _cpu_attention,
    "llmint8::gated_mlp": _cpu_gated_mlp,
    "llmint8::int8_linear": _cpu_linear,
    "llmint8::int8_linears": _cpu_linear,
}
_CUDA: dict[str, Callable[[tuple[Any, ...]], int]] = {"llmint8::int8_linear": _cuda_linear}
