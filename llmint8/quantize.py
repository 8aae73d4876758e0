"""`quantize_` and `dequantize_`: any `nn.Module`, in place."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

from llmint8 import ops
from llmint8.config import Int8Config, matches
from llmint8.nn import Int8Linear
from llmint8.nn.forms import int8_form, is_int8

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Functions that name the layers of a model to leave out by default; an integration adds one for its kind of model.
default_skips: list[Callable[[nn.Module], set[str]]] = []
# Functions that are called with a model once it has int8 layers.
after_quantize: list[Callable[[nn.Module], None]] = []
# Functions that are called with a model once it is float again.
after_dequantize: list[Callable[[nn.Module], None]] = []


def quantize_(model: ModuleT, config: Int8Config | None = None) -> ModuleT:
    """Replaces every `nn.Linear` of a model (and GPT-2's `Conv1D`) by an int8 layer, in place.

    Subclasses of `nn.Linear` stay as they are, for their meaning is their own, unless `nn.forms` has an int8 form for
    them; so does a weight that is shared with another module. One layer at a time is quantized, on the device where it
    lies.

    Args:
        model: Any module; a transformers model keeps its heads in 16 bit, see `Int8Config`.
        config: Settings; the default ones if None.

    Returns:
        The same model.

    Raises:
        TypeError: The model itself is a linear layer, which cannot be replaced in place.
        ValueError: There is nothing to quantize, a weight has a NaN or Inf, or a name in `include_modules` or
            `overrides` fits no linear layer.
    """
    config = config or Int8Config()
    if int8_form(model) is not None:
        raise TypeError(f"a {type(model).__name__} cannot be replaced in place; use Int8Linear.from_float(layer)")
    layers = layers_to_quantize(model, config)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear to quantize")
    for name in layers:
        weight = model.get_parameter(f"{name}.weight")
        ops.check_finite(weight, f"{name}.weight {list(weight.shape)}")
    done: dict[int, Int8Linear] = {}  # a layer that is used in two places stays one layer
    for name in layers:
        layer = model.get_submodule(name)
        if id(layer) not in done:
            made = int8_form(layer).from_float(layer, config.for_layer(name))  # type: ignore[union-attr]
            done[id(layer)] = made
        replace_module(model, name, done[id(layer)])
    _disable_fused_transformer_layers(model)
    for function in after_quantize:
        function(model)
    return model


def dequantize_(model: ModuleT, dtype: torch.dtype | None = None) -> ModuleT:
    """Replaces every int8 layer of a model by the float layer it came from, in place.

    Args:
        model: Any module.
        dtype: Dtype of the weights; that of the model's first float parameter if None.

    Returns:
        The same model.

    Raises:
        TypeError: The model itself is an int8 layer.
        ValueError: A layer's weight is offloaded or on the meta device.
    """
    if is_int8(model):
        raise TypeError(f"an {type(model).__name__} cannot be replaced in place; use layer.to_float()")
    layers = list(int8_layers(model))
    if offloaded := [name for name, layer in layers if layer.weight.is_meta]:
        raise ValueError(f"{offloaded[0]} has no weight in memory; load the model without offloading first")
    dtype = dtype or _float_dtype(model)
    done: dict[int, nn.Module] = {}
    for name, layer in layers:
        if id(layer) not in done:
            done[id(layer)] = layer.to_float(dtype)
        replace_module(model, name, done[id(layer)])
    for function in after_dequantize:
        function(model)
    return model


def int8_layers(model: nn.Module) -> Iterator[tuple[str, Int8Linear]]:
    """Yields the int8 layers of a model with their names, one that is used in two places under both."""
    for name, module in model.named_modules(remove_duplicate=False):
        if is_int8(module):
            yield name, module


def layers_to_quantize(model: nn.Module, config: Int8Config) -> list[str]:
    """Returns the names of the float layers that a configuration quantizes.

    Args:
        model: Any module.
        config: Settings.

    Raises:
        ValueError: A name in `include_modules` or `overrides` fits no linear layer, or a mode is static.
    """
    candidates = [n for n, m in model.named_modules(remove_duplicate=False) if int8_form(m) is not None]
    for setting, patterns in (("include_modules", config.include_modules), ("overrides", dict(config.overrides))):
        for pattern in patterns:
            if not any(matches(name, [pattern]) for name in candidates):
                raise ValueError(f"{setting} names {pattern!r}, but no linear layer has that name")
    skips = _tied_layers(model).union(*(function(model) for function in default_skips))
    names = [
        name
        for name in candidates
        if not matches(name, config.skip_modules) and (name not in skips or matches(name, config.include_modules))
    ]
    if static := [name for name in names if config.for_layer(name).mode == "static"]:
        raise ValueError(
            f"mode='static' of {static[0]} needs calibrated columns: quantize in another mode, then run "
            "llmint8.calibrate(model, batches)"
        )
    return names


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, and accelerate's hook of the old one on the new one."""
    parent, _, leaf = name.rpartition(".")
    old = model.get_submodule(name)
    setattr(model.get_submodule(parent), leaf, module)
    if (hook := getattr(old, "_hf_hook", None)) is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(module, hook)


def _float_dtype(model: nn.Module) -> torch.dtype | None:
    """Dtype of what is not int8 in a model; None if there is nothing."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not name.endswith(("weight_scale", "column_scale")):
            return parameter.dtype
    return None


def _tied_layers(model: nn.Module) -> set[str]:
    """Names of the modules whose weight is also the parameter of another module."""
    owners = {(id(m), n): p for m in model.modules() for n, p in m.named_parameters(recurse=False)}
    uses = Counter(id(p) for p in owners.values())
    return {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if uses[id(getattr(module, "weight", None))] > 1
    }


def _disable_fused_transformer_layers(model: nn.Module) -> None:
    """Keeps PyTorch's fused encoder layer, which reads float weights itself, from bypassing the int8 layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(int8_layers(module)):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and any(int8_layers(module)):
            module.use_nested_tensor = False
