"""Saving that leaves the old checkpoint, the new one or none, but never a mixture that loads."""

import contextlib
import functools
import inspect
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from llmint8.integrations.bitsandbytes import config_to_bitsandbytes
from llmint8.integrations.transformers.saved_state import prepare_for_saving, without_ours
from llmint8.quantize import int8_layers

_STAGING_PREFIX = ".llmint8-saving-"
_ABANDONED_SECONDS = 3600


def atomic(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `save_pretrained` for models with int8 layers; others are saved as before.

    Args:
        original: `PreTrainedModel.save_pretrained`, or what stands in its place.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save_pretrained(self: PreTrainedModel, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        if not any(True for _ in int8_layers(self)):
            return original(self, save_directory, *args, **kwargs)
        prepare_for_saving(self, getattr(self, "hf_quantizer", None))
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        adapters_only = getattr(self, "_hf_peft_config_loaded", False)
        arguments = signature.bind(self, save_directory, *args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        every_rank_writes = distributed or not arguments.get("is_main_process", True)
        if every_rank_writes or adapters_only or arguments.get("push_to_hub"):  # which compares time stamps
            return original(self, save_directory, *args, **kwargs)
        del arguments["self"], arguments["save_directory"]
        folder = Path(save_directory)
        variant = arguments.get("variant")
        with (
            _staging(folder, variant) as staging,
            _config_of_the_format(self),
            _only_our_conversions(self, arguments),
        ):
            original(self, staging, **arguments)
        return None

    return save_pretrained


@contextlib.contextmanager
def _staging(folder: Path, variant: str | None) -> Iterator[Path]:
    """A temporary folder whose files are moved into a folder in the end; both go away again if nothing came of it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a checkpoint is saved into a folder")
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_STAGING_PREFIX}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=folder))
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
        raise
    try:
        move(staging, folder, variant)
    except OSError as error:
        error.add_note(f"The files of the checkpoint are complete; those that are not in {folder} are in {staging}")
        raise
    shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _config_of_the_format(model: PreTrainedModel) -> Iterator[None]:
    """Makes `config.json` say bitsandbytes if that is the format of the checkpoint."""
    config = model.config.quantization_config
    try:
        if config.checkpoint_format == "bitsandbytes":
            model.config.quantization_config = config_to_bitsandbytes(config)
        yield
    finally:
        model.config.quantization_config = config


@contextlib.contextmanager
def _only_our_conversions(model: PreTrainedModel, arguments: dict[str, Any]) -> Iterator[None]:
    """Keeps our conversions where `save_original_format=False` asks for none: the checkpoint needs them."""
    conversions = model._weight_conversions
    try:
        if not arguments.pop("save_original_format", True):
            theirs = without_ours(model)
            model._weight_conversions = [c for c in conversions if c not in theirs]
        yield
    finally:
        model._weight_conversions = conversions


def move(staging: Path, folder: Path, variant: str | None = None, replaced: Iterable[str] = ()) -> None:
    """Moves a finished checkpoint into its folder: while files of two could meet there is no config.json.

    Args:
        staging: Folder of the checkpoint, on the same file system. A caller keeps it if this fails: by then, what it
            is to replace may be gone.
        folder: Where it is to be; weights that are there already are removed.
        variant: As in `save_pretrained`.
        replaced: Patterns of what else is removed from there.

    Raises:
        OSError: Something cannot be removed or moved.
    """
    config, new_config = folder / "config.json", staging / "config.json"
    mode = new_config.stat().st_mode
    config.unlink(missing_ok=True)
    tag = re.escape(f".{variant}") if variant else ""
    weights = re.compile(rf"model{tag}(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index{tag}\.json")
    old = {file for file in folder.iterdir() if weights.fullmatch(file.name)}
    for path in old.union(*(folder.glob(pattern) for pattern in replaced)):
        _remove(path)
    for path in sorted(staging.iterdir()):
        place = folder / path.name
        if path == new_config:
            continue
        if path.is_dir():
            _remove(place)  # a folder takes the place of an empty one only
        else:
            path.chmod(mode)  # safetensors makes its files readable by their owner alone
        path.replace(place)
    new_config.replace(config)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
