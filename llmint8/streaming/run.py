"""`quantize_checkpoint`: from a folder to a folder."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from llmint8._version import __version__
from llmint8.checkpoints.headers import check_folder
from llmint8.checkpoints.source import Source, find_source, locate
from llmint8.config import Int8Config
from llmint8.integrations.transformers.saving import move
from llmint8.quantize import int8_layers
from llmint8.runtime import heap
from llmint8.streaming.shard import Shard
from llmint8.streaming.staging import check_space, check_target, staging
from llmint8.streaming.weights import StreamedWeights, no_progress_bars

# What a checkpoint has besides weights and what `save_pretrained` writes: tokenizer, chat template, processor, the
# model's own code, licence.
_COMPANIONS = ("*.json", "*.jinja", "*.model", "*.py", "*.spm", "*.tiktoken", "*.txt", "additional_chat_templates/*")
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_WRITTEN = ("config.json", "generation_config.json")
# Lists of shards, whose names here are others.
_INDICES = ("*.index.json", "*.index.*.json")
# What transformers would take for the new checkpoint's if it stayed from an old one. Other files may be anyone's.
_REPLACED = (
    *("generation_config.json", "chat_template.json", "chat_template.jinja", "additional_chat_templates"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.spm", "*.tiktoken"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """What was written.

    Attributes:
        folder: Folder of the int8 checkpoint.
        layers: Number of int8 layers.
        bytes: Bytes of its weights.
        source_bytes: Bytes of the weights it was made from.
    """

    folder: Path
    layers: int
    bytes: int
    source_bytes: int


def quantize_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    config: Int8Config | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    auto_class: type | str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> QuantizedCheckpoint:
    """Makes an int8 checkpoint of a 16-bit one, without the model ever being in memory.

    The files are those that `from_pretrained(source).save_pretrained(target)` would write, and the tokenizer and the
    like besides. Memory holds one tensor at a time, or those that transformers fuses or splits together.

    The checkpoint appears in its folder when it is complete. A run that is killed leaves finished shards in a hidden
    folder there, and the next one with the same arguments goes on after them; one that fails leaves nothing.

    Args:
        source: The folder of a checkpoint in fp16, bf16 or fp32 (safetensors), or a name on the Hugging Face hub.
        target: Folder to write, which is new or empty.
        config: Settings; the default ones if None.
        dtype: Dtype of what is not int8; that of the checkpoint if None.
        max_shard_size: Largest size of a file, in bytes or as `"5GB"`; a larger tensor has a file of its own.
        overwrite: Replaces a checkpoint that is in `target`, with its tokenizer and the like; other files stay.
        auto_class: The class of the model, as in `from_pretrained`.
        trust_remote_code: Whether code that comes with the model may run.
        progress: Called with the name of a file, the bytes that are done of all files, and the bytes of all files.

    Raises:
        FileExistsError: `target` is not empty.
        FileNotFoundError: The source, its config.json or its weights are not there.
        CheckpointError: A file is truncated or corrupted, or a weight is missing or has a NaN or Inf.
        OSError: There is not enough space.
        TypeError: A setting has the wrong type.
        ValueError: The source is quantized already, or a setting does not fit the model.
    """
    folder = Path(target).expanduser()
    check_target(folder, overwrite)
    origin = _origin(source)
    if folder.resolve() == origin.resolve():
        raise ValueError(f"{folder} cannot be both the source and the target")
    found = find_source(origin, config, dtype, trust_remote_code)
    if found.is_int8:
        raise ValueError(f"{source} is int8 already; quantize a 16-bit checkpoint of the model instead")
    _set_dtype(found)
    weights = StreamedWeights(found, auto_class, trust_remote_code)
    if weights.model.can_generate():
        _read_generation_config(weights.model, origin)
    split = split_torch_state_dict_into_shards(weights.saved, max_shard_size=max_shard_size)
    shards = {name: {key: weights.saved[key] for key in keys} for name, keys in split.filename_to_tensors.items()}
    with staging(folder, _plan(found, shards)) as files:
        layouts = {name: Shard(files / name, tensors) for name, tensors in shards.items()}
        check_space(folder, sum(shard.size for shard in layouts.values() if not shard.is_finished()))
        _write_weights(weights, layouts, progress)
        if split.is_sharded:
            _write_index(split, weights.model.num_parameters(), files / "model.safetensors.index.json")
        _copy_companions(origin, files)
        _write_config(weights.model, files)
        move(files, folder, replaced=_REPLACED)
    return QuantizedCheckpoint(
        folder=folder,
        layers=sum(1 for _ in int8_layers(weights.model)),
        bytes=sum(tensor.nbytes for tensor in weights.saved.values()),
        source_bytes=sum(file.stat().st_size for file in found.files),
    )


def _origin(source: str | os.PathLike) -> Path:
    """The folder of the checkpoint, which is downloaded if it is on the hub."""
    given = os.fspath(source)
    folder = Path(locate(given))
    if not folder.is_dir():
        folder = _download(given)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{given} is an adapter; quantize the model that it was made for")
    check_folder(folder)
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", *_COMPANIONS, *_LICENCES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*.safetensors"]))
    except OSError as error:
        raise OSError(f"{name} is not a folder here, and the hub gave no model of that name: {error}") from error


def _set_dtype(source: Source) -> None:
    """Writes the dtype into the configuration and its parts, as loading does."""
    source.config.dtype = source.dtype
    for name in source.config.sub_configs:
        if (part := getattr(source.config, name, None)) is not None:
            part.dtype = source.dtype


def _read_generation_config(model: PreTrainedModel, folder: Path) -> None:
    from transformers import GenerationConfig

    try:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none, and what the model was made for says how it generates
        model.generation_config = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )


def _plan(source: Source, shards: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """What the bytes of the files depend on."""
    status = {str(file.resolve()): file.stat() for file in source.files}
    return {
        "llmint8": __version__,
        "settings": source.settings.to_dict(),
        "dtype": str(source.dtype),
        "sources": {name: [found.st_size, found.st_mtime_ns] for name, found in status.items()},
        "shards": {name: list(tensors) for name, tensors in shards.items()},
    }


def _write_weights(
    weights: StreamedWeights, shards: Mapping[str, Shard], progress: Callable[[str, int, int], None] | None
) -> None:
    report = progress or (lambda name, done, total: None)
    total = sum(shard.size for shard in shards.values())
    before = 0
    for file, shard in shards.items():
        if not shard.is_finished():
            done = before
            with shard:
                for unit in weights.units:
                    names = [name for name in unit.saved if name in shard.names]
                    made = weights.tensors(unit) if names else {}
                    for name in names:
                        shard.write(name, made[name])
                        done += made[name].nbytes
                        report(file, done, total)
                    weights.release()
            heap.trim()
        before += shard.size
        report(file, before, total)


def _write_index(split: StateDictSplit, parameters: int, file: Path) -> None:
    """The list of the shards, as `save_pretrained` writes it."""
    index = {
        "metadata": {"total_parameters": parameters, **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_companions(origin: Path, target: Path) -> None:
    for file in sorted({found for pattern in (*_COMPANIONS, *_LICENCES) for found in origin.glob(pattern)}):
        name = file.relative_to(origin)
        if file.is_file() and str(name) not in _WRITTEN and not any(map(file.match, _INDICES)):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target / name)


def _write_config(model: PreTrainedModel, files: Path) -> None:
    """Has transformers write what is not weights, config.json last."""
    with tempfile.TemporaryDirectory(dir=files.parent) as folder, no_progress_bars():
        model.save_pretrained(folder)
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name == "config.json")
        for file in written:
            file.replace(files / file.name)
