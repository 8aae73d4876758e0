"""Models that are not loaded: a folder, a `config.json` or a name on the hub, and what describes them.

This is the one place that knows what a path stands for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmint8.checkpoints.headers import read_headers, weight_files
from llmint8.checkpoints.settings import int8_settings, merged_settings
from llmint8.config import Int8Config
from llmint8.ops import INPUT_DTYPES

# As safetensors writes them.
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# What `AutoConfig.from_pretrained` needs to find the same files as the model will.
HUB_KEYWORDS = (
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


@dataclass(frozen=True)
class Source:
    """A model that is not loaded.

    Attributes:
        config: The transformers configuration, without a quantization.
        files: safetensors files with its weights, of which only the headers are read; none if they are not here.
        settings: How it is quantized.
        is_int8: Whether the checkpoint is int8 already.
        dtype: Dtype of what is not int8.
        notes: What a reader should know.
    """

    config: Any
    files: tuple[Path, ...]
    settings: Int8Config
    is_int8: bool
    dtype: torch.dtype
    notes: tuple[str, ...]


def locate(given: str | os.PathLike, may_be_file: bool = False) -> str:
    """Returns where a model is: a path that exists, or the name of a model on the Hugging Face hub.

    Args:
        given: What was given for a model.
        may_be_file: Whether a file will do, a `config.json`.

    Raises:
        FileNotFoundError: It is neither.
    """
    path = os.fspath(given)
    local = Path(path).expanduser()
    if local.is_dir() or (may_be_file and local.exists()):
        return str(local)
    if local.exists():
        raise FileNotFoundError(f"{path} is a file, not the folder of a checkpoint")
    if len(Path(path).parts) > 2 or Path(path).is_absolute() or path.startswith(("~", ".")):
        raise FileNotFoundError(f"{path} does not exist")
    return path


def read_config(path: str, kwargs: dict[str, Any]) -> Any:
    """Reads the configuration that a model will be loaded with.

    Args:
        path: A folder, a `config.json`, or a name on the hub.
        kwargs: Keywords of `from_pretrained`; a `config` among them is what is used.

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
    hub = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
    try:
        return AutoConfig.from_pretrained(path if given is None else given, **hub)
    except OSError as error:
        if given is not None or Path(path).exists():
            raise
        raise OSError(f"{path} is not a folder here, and the hub gave no model of that name: {error}") from error


def stored_quantization(config: Any) -> dict[str, Any] | None:
    """Returns the quantization that a checkpoint was saved with, as transformers looks for it; None if it has none.

    Args:
        config: A transformers configuration.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None and config is not None:
        stored = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    return stored if stored is None or isinstance(stored, dict) else stored.to_dict()


def find_source(
    path: str | os.PathLike, config: Int8Config | None, dtype: torch.dtype | str | None, trust_remote_code: bool
) -> Source:
    """Finds a model and reads what describes it.

    Args:
        path: A folder, a `config.json`, or a name on the Hugging Face hub, of which only the configuration is read.
        config: Settings; those of an int8 checkpoint, or the default ones, if None.
        dtype: Dtype of what is not int8; that of the checkpoint if None.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        OSError: There is no such model, or it has no configuration.
        ValueError: The configuration cannot be used, or a setting contradicts it.
    """
    given = os.fspath(path)
    local = Path(given).expanduser()
    if local.is_dir() and not (local / "config.json").is_file():
        raise FileNotFoundError(f"{given} has no config.json")
    model_config = read_config(locate(given, may_be_file=True), {"trust_remote_code": trust_remote_code})
    files, notes = _files(local)
    stored = stored_quantization(model_config)
    if stored is None:
        settings = config or Int8Config()
    else:
        settings = merged_settings(int8_settings(stored, given), config, {})
        model_config = _without_quantization(model_config)
        if not files and "static" in (settings.mode, *(dict(own).get("mode") for _, own in settings.overrides)):
            # Which columns are static is in the weights alone.
            settings = settings.replace(mode="none", overrides=())
            notes.append("static outlier columns, 8 bytes each, are not counted: the weights are not here")
    kept_in = _dtype(dtype, model_config, files, notes)
    return Source(model_config, files, settings, stored is not None, kept_in, tuple(notes))


def _files(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """The weights in a folder, if they are all there."""
    if not folder.is_dir():
        return (), []
    try:
        return tuple(weight_files(folder)), []
    except FileNotFoundError as error:
        return (), [f"layers are as the configuration says, not as the checkpoint has them: {error}"]


def _without_quantization(config: Any) -> Any:
    """The same configuration, of the model before it was quantized."""
    for part in (config, config.get_text_config(decoder=True)):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def _dtype(given: torch.dtype | str | None, config: Any, files: Sequence[Path], notes: list[str]) -> torch.dtype:
    """The dtype that a model is loaded with."""
    dtype = given or getattr(config, "dtype", None)
    if dtype is None:
        dtype = next((_FLOATS[t.dtype] for t in read_headers(files).values() if t.dtype in _FLOATS), None)
    if dtype is None:
        dtype = torch.bfloat16
        notes.append("bfloat16 is assumed: neither the configuration nor a checkpoint says which dtype it is")
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in INPUT_DTYPES:
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {dtype}")
    return found
