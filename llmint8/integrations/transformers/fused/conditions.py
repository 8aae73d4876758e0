"""When a fused operator may take the place of the modules it stands for."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from llmint8.integrations.transformers.fused.fused_module import FusedModule
from llmint8.kernels.cpu import native
from llmint8.nn import Int8Linear
from llmint8.ops import INPUT_DTYPES, is_on_cpu


def runs_fused(x: Tensor) -> bool:
    """Whether an input is computed by the native kernels, without gradients and without a compiler."""
    return (
        is_on_cpu(x)
        and x.dtype in INPUT_DTYPES
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not (nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)
        and torch._C._functorch.peek_interpreter_stack() is None  # no vmap
        and (x.is_meta or native.load())
    )


def only_int8(layers: Sequence[nn.Module]) -> bool:
    """Whether layers are plain int8 ones with the same settings, which nobody hooks or offloads.

    Of a budget that is a share, layers with as many columns have the same number.
    """
    first = layers[0]
    if type(first) is not Int8Linear:
        return False
    for layer in layers:
        if type(layer) is not Int8Linear or not reads_input_as_it_is(layer):
            return False
        if layer.outlier_rule != first.outlier_rule and not _differ_in_budget(layer, first):
            return False
    return not have_hooks(layers)


def _differ_in_budget(layer: Int8Linear, other: Int8Linear) -> bool:
    """Whether two layers of different widths have the same rule but for the number of columns."""
    same = layer.outlier_rule._replace(budget=0) == other.outlier_rule._replace(budget=0)
    return same and layer.in_features != other.in_features


def reads_input_as_it_is(layer: Int8Linear) -> bool:
    """Whether a layer has its parameters, which a replica of nn.DataParallel has not, and no `column_scale`."""
    parameters = layer._parameters
    return "weight" in parameters and parameters["column_scale"] is None


def have_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether a module has hooks, or a `forward` of its own, as accelerate gives it."""
    for module in modules:
        members = module.__dict__
        if members["_forward_pre_hooks"] or "forward" in members:
            return True
        if (hooks := members["_forward_hooks"]) and not all(map(_is_idle, hooks.values())):
            return True
    return False


def _is_idle(hook: Any) -> bool:
    """Whether a hook is one that transformers installs for good and that nobody asks for outputs just now."""
    if not getattr(hook, "__qualname__", "").endswith("output_capturing_hook"):
        return False
    from transformers.utils.output_capturing import _active_collector

    collected = _active_collector.get()
    if not collected:
        return True
    variables = dict(zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True))
    return "key" in variables and variables["key"].cell_contents not in collected


def is_fused(module: nn.Module) -> bool:
    """Whether a module has the class that `fuse` gives, and nobody has patched the class below it since."""
    return isinstance(module, FusedModule) and not module.is_patched()


def tensors(layers: Sequence[nn.Module]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """The weights, scales, biases and outlier columns of int8 layers, as the operators take them."""
    parameters = [layer._parameters for layer in layers]
    return (
        [p["weight"] for p in parameters],
        [p["weight_scale"] for p in parameters],
        [p["bias"] for p in parameters],
        [p["outlier_columns"] for p in parameters],
    )
