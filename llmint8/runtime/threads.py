"""Tells the native kernels where passes and generations begin and end, so that they can manage the threads.

On a busy machine, threads wait milliseconds for each other at the end of every operator, PyTorch's as well as ours.
When the kernels notice it, the pass goes on with one thread; the number of threads is restored when the pass ends.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from llmint8.kernels.cpu import native

# A pass over more tokens computes more than it waits.
_FEW_TOKENS = 16


def manage(model: nn.Module) -> None:
    """Has the threads of every pass of a model over a few tokens managed.

    Args:
        model: One whose first argument, or `input_ids`, is int64 [batch, tokens].
    """
    if is_managed(model):
        return
    model.register_forward_pre_hook(_enter, with_kwargs=True)
    model.register_forward_hook(_leave, always_call=True)


def is_managed(model: nn.Module) -> bool:
    """Whether `manage` was called with a model."""
    return _enter in model._forward_pre_hooks.values()


@contextlib.contextmanager
def generation() -> Iterator[None]:
    """Manages the threads between the passes of a generation, too; sampling waits for threads as they do."""
    if torch.compiler.is_compiling() or not native.load():
        yield
        return
    torch.ops.llmint8_cpu.begin_generation()
    try:
        yield
    finally:
        torch.ops.llmint8_cpu.end_generation()


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or not native.is_loaded():
        return
    tokens = kwargs.get("input_ids", args[0] if args else None)
    few = isinstance(tokens, torch.Tensor) and tokens.is_cpu and tokens.numel() <= _FEW_TOKENS
    torch.ops.llmint8_cpu.enter_forward(few, id(model))


def _leave(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if not torch.compiler.is_compiling() and native.is_loaded():
        torch.ops.llmint8_cpu.leave_forward()
