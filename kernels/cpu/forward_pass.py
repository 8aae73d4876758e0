"""Tells the native kernels where a forward pass of a model begins and ends, so that they can look after its threads.

On a busy machine, threads wait milliseconds for each other at the end of every operator, PyTorch's as well as ours.
When the kernels notice it, the pass goes on with one thread; the number of threads is restored when the pass ends.
"""

from typing import Any

import torch
from torch import nn

from llmint8.kernels.cpu import native

# A pass over more tokens computes more than it waits.
_FEW_TOKENS = 16


def watch(model: nn.Module) -> None:
    """Has every pass of a model over a few tokens looked after.

    Args:
        model: One whose first argument, or `input_ids`, is int64 [batch, tokens].
    """
    if _enter in model._forward_pre_hooks.values():
        return
    model.register_forward_pre_hook(_enter, with_kwargs=True)
    model.register_forward_hook(_leave, always_call=True)


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or not native.is_loaded():
        return
    tokens = kwargs.get("input_ids", args[0] if args else None)
    few = isinstance(tokens, torch.Tensor) and tokens.is_cpu and tokens.numel() <= _FEW_TOKENS
    torch.ops.llmint8_cpu.enter_forward(few, id(model))


def _leave(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if not torch.compiler.is_compiling() and native.is_loaded():
        torch.ops.llmint8_cpu.leave_forward()
