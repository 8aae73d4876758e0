"""The settings that a model is loaded with: those that were asked for, and those that a checkpoint stores."""

from collections.abc import Mapping
from typing import Any

from llmint8.checkpoints.formats import format_of
from llmint8.config import Int8Config

SETTINGS = (*Int8Config.RUNTIME_SETTINGS, "overrides", "skip_modules", "include_modules")
_OUTLIER_SETTINGS = ("mode", "threshold", "budget", "relative")


def requested_settings(config: Int8Config | Mapping[str, Any] | None, settings: dict[str, Any]) -> Int8Config:
    """Returns the settings that were asked for.

    Args:
        config: Settings that were given as a whole, ours or those of another library that has one of our formats.
        settings: Settings that were given one by one.

    Raises:
        TypeError: The settings are of another kind, or a value has the wrong type.
        ValueError: Both are given, or a value is out of range.
    """
    if config is None:
        return Int8Config(**settings)
    if settings:
        raise ValueError(f"both quantization_config and {', '.join(sorted(settings))} are given; give only one")
    if isinstance(config, Int8Config):
        return config
    if not isinstance(config, Mapping):
        to_dict = getattr(config, "to_dict", None)
        method = getattr(config, "quant_method", None)
        stored_as = format_of({"quant_method": method})
        if to_dict is None or stored_as is None:
            raise TypeError(f"quantization_config must be an llmint8.Int8Config, got {type(config).__name__}")
        config = {**to_dict(), "quant_method": stored_as.quant_method}
    stored_as = format_of(config)
    if stored_as is not None and stored_as.quant_method != Int8Config.quant_method:
        return stored_as.from_config(config).replace(checkpoint_format="llmint8")
    return Int8Config.from_dict(config)


def int8_settings(stored: dict[str, Any], path: str) -> Int8Config:
    """Returns the settings of a checkpoint that is already int8.

    Args:
        stored: What `stored_quantization` returns.
        path: For the message of an error.

    Raises:
        ValueError: It is quantized by a method that no format has.
    """
    stored_as = format_of(stored)
    if stored_as is not None:
        return stored_as.from_config(stored)
    method = stored.get("quant_method")
    raise ValueError(f"{path} is already quantized with {method!r}; load a 16-bit checkpoint of the model instead")


def merged_settings(stored: Int8Config, config: Any, settings: dict[str, Any]) -> Int8Config:
    """Returns the stored settings with the runtime ones replaced by those that were asked for.

    Args:
        stored: Settings that the checkpoint stores.
        config: Settings that were given as a whole, or None.
        settings: Settings that were given one by one.

    Raises:
        ValueError: They would change which layers are int8.
    """
    requested = settings if config is None else requested_settings(config, {}).to_dict()
    for name in ("skip_modules", "include_modules"):
        if requested.get(name) and tuple(requested[name]) != getattr(stored, name):
            raise ValueError(f"{name}={requested[name]!r} cannot be changed: the checkpoint is already int8")
    runtime = {name: requested[name] for name in Int8Config.RUNTIME_SETTINGS if name in requested}
    # What is asked for is meant for every layer, also for those with stored settings of their own.
    replaced = set(runtime)
    if replaced & set(_OUTLIER_SETTINGS):  # they depend on each other
        replaced |= set(_OUTLIER_SETTINGS)
    left = [(pattern, {n: v for n, v in own if n not in replaced}) for pattern, own in stored.overrides]
    overrides = requested.get("overrides", [pair for pair in left if pair[1]])
    return stored.replace(**runtime, overrides=overrides)
