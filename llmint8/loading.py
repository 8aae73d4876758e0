"""`from_pretrained(..., load_in_8bit=True)`: transformers' own loading, with int8 asked for and input checked."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmint8.checkpoints.formats import format_of
from llmint8.checkpoints.headers import check_folder
from llmint8.config import Int8Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTINGS = (*Int8Config.RUNTIME_SETTINGS, "overrides", "skip_modules", "include_modules")
_OUTLIER_SETTINGS = ("mode", "threshold", "budget", "relative")
# What `AutoConfig.from_pretrained` needs to find the same files as the model will.
_HUB_KEYWORDS = (
    "cache_dir",
    "code_revision",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


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
    requested = _requested(quantization_config, settings)
    if not load_in_8bit and (quantization_config is not None or settings):
        given = ["quantization_config"] if quantization_config is not None else sorted(settings)
        raise ValueError(f"load_in_8bit=False contradicts {', '.join(given)}; remove one")
    path = _checked_path(pretrained_model_name_or_path, kwargs)
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


def _requested(config: Int8Config | Mapping[str, Any] | None, settings: dict[str, Any]) -> Int8Config:
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


def _checked_path(given: str | os.PathLike, kwargs: Mapping[str, Any]) -> str:
    """The path or hub name, once what can be told without loading has been found in order."""
    path = os.fspath(given)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if kwargs.get("gguf_file") is None:
            folder_of_weights = folder / (kwargs.get("subfolder") or "")
            check_folder(folder_of_weights, kwargs.get("variant"), kwargs.get("use_safetensors"))
        return str(folder)
    if folder.exists() or not is_hub_name(path):
        problem = "is a file, not the folder of a checkpoint" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {problem}")
    return path


def is_hub_name(path: str) -> bool:
    """Whether something that is no folder may be the name of a model on the Hugging Face hub.

    Args:
        path: What was given for a model.
    """
    return len(Path(path).parts) <= 2 and not Path(path).is_absolute() and not path.startswith(("~", "."))


def read_config(path: str, kwargs: dict[str, Any]) -> Any:
    """Reads the configuration that a model will be loaded with.

    Args:
        path: A folder, a `config.json`, or a name on the hub.
        kwargs: Of `from_pretrained`; a `config` among them is what is used.

    Returns:
        A transformers configuration; None for a folder with only an adapter.

    Raises:
        OSError: There is none.
    """
    from transformers import AutoConfig

    given = kwargs.get("config")
    if given is not None and not isinstance(given, str | os.PathLike):
        return given
    if given is None and (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        return None
    hub = {name: kwargs[name] for name in _HUB_KEYWORDS if name in kwargs}
    try:
        return AutoConfig.from_pretrained(path if given is None else given, **hub)
    except OSError as error:
        if given is not None or Path(path).exists():
            raise
        raise OSError(f"{path} is not a folder here, and the hub gave no model of that name: {error}") from error


def stored_quantization(config: Any) -> dict[str, Any] | None:
    """Returns the quantization that a checkpoint was saved with, as transformers looks for it; None if it has none.

    Args:
        config: Of transformers.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None and config is not None:
        stored = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    return stored if stored is None or isinstance(stored, dict) else stored.to_dict()


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
        stored: Of the checkpoint.
        config: Settings that were given as a whole, or None.
        settings: Settings that were given one by one.

    Raises:
        ValueError: They would change which layers are int8.
    """
    requested = settings if config is None else _requested(config, {}).to_dict()
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


def _with_settings(settings: Int8Config, path: str, config_class: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords with a configuration that carries other settings, since transformers prefers the stored ones."""
    from transformers import AutoConfig

    config = kwargs.get("config")
    if config is None or isinstance(config, str | os.PathLike):
        # Reads the keywords that belong to the configuration, as transformers would.
        rest = {name: value for name, value in kwargs.items() if name != "config"}
        source = path if config is None else config
        config, unused = (config_class or AutoConfig).from_pretrained(source, return_unused_kwargs=True, **rest)
        hub = {name: kwargs[name] for name in _HUB_KEYWORDS if name in kwargs}
        kwargs = {**hub, **unused}
    else:
        config = copy.deepcopy(config)
    config.quantization_config = settings.to_dict()
    return {**kwargs, "config": config}


def model_class_of(auto_class: type | str | None, config: Any) -> Any:
    """Returns the class that a model is loaded with.

    Args:
        auto_class: The class, or its name in transformers; None leaves it to the configuration.
        config: Of transformers, or None.

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
