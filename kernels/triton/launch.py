"""Launching kernels: on the device of a tensor, and again without Triton's look at every argument.

On the host that look takes longer than all else. In `generate`, a step of a large model launches hundreds of kernels,
and the GPU waits for the host between them.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

# What decides which compiled kernel an int gets: that it is 1, a multiple of 16, or does not fit 32 bits.
_MULTIPLE = 16
# Offsets within a tile, of at most 256 rows, have 32 bits.
_FARTHEST = (1 << 31) // 256
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | int | None, **keywords: Any) -> None:
    """Does what `kernel[grid](*arguments, **keywords)` does.

    Args:
        kernel: A `triton.jit` function.
        grid: Number of programs in up to three directions.
        *arguments: All that are no constants; the first one is a tensor on the current device.
        **keywords: Constants and launch options, always in the same order for a kernel.
    """
    device = arguments[0].device  # type: ignore[union-attr]
    # Interpreted, emulated, compiled only, or fake; and AMD's compiler looks at the sizes of tensors, too.
    if device.type != "cuda" or type(arguments[0]) is not Tensor or torch.version.hip:
        kernel[grid](*arguments, **keywords)
        return
    key = (kernel, device.index, *map(_kind, arguments), *keywords.values())
    if (found := _compiled.get(key)) is not None:
        compiled, constants = found
        compiled[(*grid, 1, 1)[:3]](*arguments, *constants)
        return
    compiled = kernel[grid](*arguments, **keywords)
    if hasattr(compiled, "function"):
        _compiled[key] = compiled, tuple(keywords[name] for name in kernel.arg_names[len(arguments) :])


def with_contiguous_rows(x: Tensor) -> Tensor:
    """Returns a matrix whose rows are contiguous and not too far from each other: itself, if they are, or a copy."""
    contiguous = x.stride(1) == 1 or x.shape[1] == 1
    return x if contiguous and x.stride(0) < _FARTHEST else x.contiguous()


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of a tensor the one that kernels are launched on, if it is another one."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def _kind(argument: Tensor | int | None) -> Any:
    """What Triton compiles a kernel for, of one argument."""
    if argument is None:
        return None
    if isinstance(argument, int):
        return (argument == 1) | (argument % _MULTIPLE == 0) << 1 | (argument >= 1 << 31) << 2
    return argument.dtype, argument.data_ptr() % _MULTIPLE == 0
