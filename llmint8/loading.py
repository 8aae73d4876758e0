"""`from_pretrained(..., load_in_8bit=True)`: transformers' own loading, with int8 asked for and input checked."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmint8.checkpoints.headers import check_folder
from llmint8.checkpoints.settings import SETTINGS, int8_settings, merged_settings, requested_settings
from llmint8.checkpoints.source import HUB_KEYWORDS, locate, read_config, stored_quantization
from llmint8.config import Int8Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def from_pretrained(
    pretrained_model_name_or_path: str | os.PathLike,
    *,
    load_in_8bit: bool = True,
    quantization_config: Int8Config | Mapping[str, Any] | None = None,
    auto_class: type | str | None = None,
    **kwargs: Any,
) -> "PreTrainedModel":
    """Loads a transformers model in 8 bit.

    A 16-bit checkpoint is quantized while it is read, one tensor at a time. One that is already int8, ours or
    bitsandbytes', is loaded as it is, and runtime settings given here replace those it stores.

    Args:
        pretrained_model_name_or_path: A folder, or the name of a model on the Hugging Face hub.
        load_in_8bit: False loads a 16-bit checkpoint as it is.
        quantization_config: Settings. Alternatively, give its fields one by one: `threshold=6.0`, `budget=64`,
            `mode`, `relative`, `symmetric`, `overrides`, `skip_modules`, `include_modules`.
        auto_class: The class to load with, or its name in transformers: `"AutoModelForSequenceClassification"`. The
            class that the checkpoint was saved from if None.
        **kwargs: Every other keyword that transformers takes: `device_map`, `dtype`, `offload_folder`, ... Pickled
            weights are loaded only with `use_safetensors=False`.

    Returns:
        A transformers model in evaluation mode.

    Raises:
        FileNotFoundError: The folder, its config.json or its weights are not there.
        CheckpointError: A file is truncated or corrupted, or a scale is missing or has the wrong shape.
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, arguments contradict each other, or the checkpoint is quantized by
            another method.
    """
    if not isinstance(load_in_8bit, bool):
        raise TypeError(f"load_in_8bit must be True or False, got {load_in_8bit!r}")
    if kwargs.pop("load_in_4bit", False):
        raise ValueError("load_in_4bit=True: this library is 8-bit only; use load_in_8bit=True")
    settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
    requested = requested_settings(quantization_config, settings)
    if not load_in_8bit and (quantization_config is not None or settings):
        given = ["quantization_config"] if quantization_config is not None else sorted(settings)
        raise ValueError(f"load_in_8bit=False contradicts {', '.join(given)}; remove one")
    path = locate(pretrained_model_name_or_path)
    if Path(path).is_dir() and kwargs.get("gguf_file") is None:
        weights = Path(path) / (kwargs.get("subfolder") or "")
        check_folder(weights, kwargs.get("variant"), kwargs.get("use_safetensors"))
    if kwargs.get("gguf_file") is not None:
        return _from_gguf(model_class_of(auto_class, None), path, requested if load_in_8bit else None, kwargs)
    kwargs.pop("gguf_file", None)
    if kwargs.get("use_safetensors") is None:
        kwargs["use_safetensors"] = True
    stored_config = read_config(path, kwargs)
    model_class = model_class_of(auto_class, stored_config)
    stored = stored_quantization(stored_config)
    if stored is None:
        if load_in_8bit:
            kwargs["quantization_config"] = requested
        return model_class.from_pretrained(path, **kwargs)
    if not load_in_8bit:
        raise ValueError(f"load_in_8bit=False, but {path} is already int8; load it and use llmint8.dequantize_(model)")
    merged = merged_settings(int8_settings(stored, path), quantization_config, settings)
    part_class = getattr(model_class, "config_class", None)  # that of a part, for the vision tower of a CLIP
    if merged.to_dict() != stored or (part_class is not None and not isinstance(stored_config, part_class)):
        kwargs = _with_settings(merged, path, part_class, kwargs)
    return model_class.from_pretrained(path, **kwargs)


def _with_settings(settings: Int8Config, path: str, config_class: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords with a configuration that carries other settings, since transformers prefers the stored ones."""
    from transformers import AutoConfig

    config = kwargs.get("config")
    if config is None or isinstance(config, str | os.PathLike):
        # Reads the keywords that belong to the configuration, as transformers would.
        rest = {name: value for name, value in kwargs.items() if name != "config"}
        source = path if config is None else config
        config, unused = (config_class or AutoConfig).from_pretrained(source, return_unused_kwargs=True, **rest)
        hub = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
        kwargs = {**hub, **unused}
    else:
        config = copy.deepcopy(config)
    config.quantization_config = settings.to_dict()
    return {**kwargs, "config": config}


def model_class_of(auto_class: type | str | None, config: Any) -> Any:
    """Returns the class that a model is loaded with.

    Args:
        auto_class: The class, or its name in transformers; None leaves it to the configuration.
        config: A transformers configuration, or None.

    Raises:
        ValueError: transformers has no class of that name.
    """
    import transformers

    if isinstance(auto_class, str):
        if not hasattr(transformers, auto_class):
            raise ValueError(f"auto_class must be a class of transformers or its name, got {auto_class!r}")
        return getattr(transformers, auto_class)
    if auto_class is not None:
        return auto_class
    architecture = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, architecture, transformers.AutoModelForCausalLM)


def _from_gguf(model_class: Any, path: str, config: Int8Config | None, kwargs: dict[str, Any]) -> "PreTrainedModel":
    """Loads a GGUF file in floating point, as transformers does, and quantizes it after that."""
    from llmint8.quantize import quantize_

    model = model_class.from_pretrained(path, **kwargs)
    if config is None:
        return model
    model.hf_quantizer = None
    del model.config.quantization_config
    return quantize_(model, config)
