"""`define`: one declaration makes an operator `torch.ops.llmint8.<name>` of PyTorch.

An operator is whole on its page: schema, fallback in plain PyTorch, shapes under tracing, gradient. Everything
data-dependent happens inside an operator, so that a compiled graph sees one opaque node for it. Who runs it for which
tensors is asked of `llmint8.kernels.backend` here, and nowhere else.

Beside each operator there is `<name>_fallback`: what the native kernels call for arguments that they do not take. An
operator with a gradient has `<name>_with_gradient`, too, by which native code reaches the gradient.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmint8.kernels import backend

_library = torch.library.Library("llmint8", "DEF")


class Gradient(NamedTuple):
    """The gradient of an operator.

    Attributes:
        save: Keeps what it needs: called with the context, the arguments and the result.
        backward: Returns the gradients to all arguments, None for those that have none.
    """

    save: Callable[[Any, tuple[Any, ...], Any], None]
    backward: Callable[..., Any]


class Operator(NamedTuple):
    """An operator that has been defined.

    Attributes:
        name: Its name without the namespace.
        call: The operator itself, for the fastest call that goes through PyTorch's dispatcher.
        run: The same without the dispatcher, and so without gradient, tracing and native kernels.
    """

    name: str
    call: Callable[..., Any]
    run: Callable[..., Any]


def define(
    name: str,
    schema: str,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    around: Callable[..., Any] | None = None,
    gradient: Gradient | None = None,
    one_by_one: bool = False,
) -> Operator:
    """Defines an operator for every device.

    Args:
        name: Its name without the namespace; the kernels of a backend have the same.
        schema: Arguments and results, as PyTorch writes them: `"(Tensor x) -> Tensor"`. The first one is a tensor.
        fallback: Computes it in plain PyTorch, on any device: what runs where no backend has a kernel, and the
            reference that kernels are tested against.
        fake: Makes empty results of the right shapes; may refuse arguments.
        around: Called as `around(kernel, *arguments)` in the place of a kernel or of the fallback, to check any input
            and to bring it into the form that they take. Native kernels check theirs themselves.
        gradient: How its gradient is computed, if it has one.
        one_by_one: Whether a vmap runs the examples one after another.

    Returns:
        The operator.
    """
    overload: Callable[..., Any]

    def run(*args: Any) -> Any:
        for kernels in backend.BACKENDS:
            if kernels.has(name) and kernels.takes(*args):
                kernel = kernels.kernel(name)
                # Kernels that bind themselves are called as the operator, which checks the input.
                result = kernel(*args) if kernels.bound else _compute(kernel, around, args)
                if result is not NotImplemented:
                    return result
        return _compute(fallback, around, args)

    def run_fallback(*args: Any) -> Any:  # called by the kernels that bind themselves
        for kernels in backend.BACKENDS:
            if not kernels.bound and kernels.has(name) and kernels.takes(*args):
                result = _compute(kernels.kernel(name), around, args)
                if result is not NotImplemented:
                    return result
        return _compute(fallback, around, args)

    _define(name, schema, run, fake)
    _define(f"{name}_fallback", schema, run_fallback, fake)
    overload = getattr(torch.ops.llmint8, name).default
    if gradient is not None:
        _define(f"{name}_with_gradient", schema, lambda *args: overload(*args), fake)
        for suffix in ("", "_fallback", "_with_gradient"):
            torch.library.register_autograd(
                f"llmint8::{name}{suffix}", gradient.backward, setup_context=gradient.save, lib=_library
            )
    if one_by_one:
        torch.library.register_vmap(f"llmint8::{name}", _one_by_one(overload), lib=_library)
    return Operator(name, overload, run)


class _NotTakenError(Exception):
    """A kernel has returned `NotImplemented`."""


def _compute(kernel: Callable[..., Any], around: Callable[..., Any] | None, args: tuple[Any, ...]) -> Any:
    if around is None:
        return kernel(*args)
    try:
        return around(_raising(kernel), *args)
    except _NotTakenError:
        return NotImplemented


@functools.cache
def _raising(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that raises instead of returning `NotImplemented`, which `around` would take for a result."""

    def call(*args: Any) -> Any:
        result = kernel(*args)
        if result is NotImplemented:
            raise _NotTakenError
        return result

    return call


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llmint8::{name}", fake, lib=_library)


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for vmap: each example chooses its own outlier columns, as a loop would."""

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        examples = (
            [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)]
            for i in range(info.batch_size)
        )
        return torch.stack([operator(*example) for example in examples]), 0

    return vmap
