"""What a safetensors checkpoint holds, read from the headers alone, and whether its files are whole."""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")
_MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors library


class CheckpointError(ValueError):
    """A checkpoint is damaged or incomplete."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header of a safetensors file describes it.

    Attributes:
        dtype: As safetensors writes it: `"I8"`, `"F32"`, `"BF16"`.
        shape: Its dimensions.
        file: Where it is.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_headers(files: Iterable[str | Path]) -> dict[str, TensorInfo]:
    """Reads what is in some safetensors files, without the data.

    Args:
        files: Paths; those that do not end with `.safetensors` are passed over.

    Returns:
        Tensor name -> description.

    Raises:
        CheckpointError: A file is truncated or is not a safetensors file.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in map(Path, files):
        if file.suffix == ".safetensors":
            tensors |= _read_header(file)
    return tensors


def check_folder(folder: Path, variant: str | None = None, use_safetensors: bool | None = None) -> None:
    """Checks that a local checkpoint is whole before anything is loaded from it.

    Args:
        folder: Folder of the checkpoint.
        variant: As in `from_pretrained`: `model.<variant>.safetensors`.
        use_safetensors: False allows pickle files, which can run code when they are loaded.

    Raises:
        FileNotFoundError: There is no `config.json`, no weights, or a shard is missing.
        CheckpointError: A safetensors file is truncated or corrupted.
    """
    if (folder / "adapter_config.json").is_file():
        return  # transformers loads the base model that it names
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a checkpoint (or one whose save failed)")
    if use_safetensors is False:
        return
    files = weight_files(folder, variant)
    if not files:
        if any(folder.glob("*.safetensors")):
            return  # by another name: transformers knows, or says what it looked for
        if pickles := sorted(folder.glob("pytorch_model*.bin")):
            raise FileNotFoundError(
                f"{folder} has no safetensors file, only pickled weights ({pickles[0].name}), which can run code when "
                "they are loaded; if you trust them pass use_safetensors=False"
            )
        single, index = _names(folder, variant)
        raise FileNotFoundError(f"{folder} has no weights: neither {single.name} nor {index.name} is there")
    read_headers(files)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Returns the safetensors files that transformers loads from a folder; none if it has none by their usual names.

    Args:
        folder: Folder of a checkpoint.
        variant: As in `from_pretrained`.

    Raises:
        FileNotFoundError: A shard is missing.
        CheckpointError: The list of shards cannot be read.
    """
    single, index = _names(folder, variant)
    if single.is_file():
        return [single]
    return _shards(index) if index.is_file() else []


def check_scales(tensors: Mapping[str, TensorInfo]) -> None:
    """Checks that every int8 weight has a scale of the right shape and dtype, and every scale a weight.

    Args:
        tensors: What the checkpoint holds.

    Raises:
        CheckpointError: A weight or a scale is missing, or has another shape or dtype.
    """
    from llmint8.checkpoints.formats import FORMATS  # lazily, for `llmint8.config` is not needed to read headers

    by_scale = {known.scale_names[0]: known for known in FORMATS}
    weight_names = {known.weight_name for known in FORMATS}
    for name, weight in tensors.items():
        stem, _, leaf = name.rpartition(".")
        own = by_scale.get(leaf)
        if own and f"{stem}.{own.weight_name}" not in tensors:
            raise CheckpointError(
                f"{weight.file}: {stem}.{own.weight_name} is missing, though its scale {name} is there"
            )
        if leaf == "column_scale":
            columns = weight.shape[0] if len(weight.shape) == 1 else 0
            int8 = tensors.get(f"{stem}.weight")
            width = 0 if int8 is None else int8.shape[1] if len(int8.shape) == 2 else columns
            if weight.dtype != "F32" or columns == 0 or columns != width:
                raise CheckpointError(
                    f"{weight.file}: {name} is {weight.dtype} {list(weight.shape)}, which does not fit {stem}.weight"
                )
        if leaf not in weight_names or weight.dtype != "I8":
            continue
        found = [
            (known, f"{stem}.{scale}")
            for scale, known in by_scale.items()
            if known.weight_name == leaf and f"{stem}.{scale}" in tensors
        ]
        if not found:
            raise CheckpointError(f"{weight.file}: {name} is int8, but its scale {stem}.weight_scale is missing")
        known, scale_name = found[0]
        scale = tensors[scale_name]
        rows = scale.shape[0] if scale.shape else 0
        shape = (rows, 1) if known.scale_is_column else (rows,)
        # A flat weight (see integrations/transformers/flat_weights.py) tells its rows by dividing evenly.
        fits = weight.shape[0] == rows if len(weight.shape) == 2 else rows > 0 and weight.shape[0] % rows == 0
        if scale.dtype != "F32" or scale.shape != shape or not fits:
            raise CheckpointError(
                f"{scale.file}: the scale {scale_name} is {scale.dtype} {list(scale.shape)}, which does not fit "
                f"{name}, {weight.dtype} {list(weight.shape)}"
            )


def _read_header(file: Path) -> dict[str, TensorInfo]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{file} is truncated or not a safetensors file ({size} bytes)")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            tensors = {name: TensorInfo(entry["dtype"], tuple(entry["shape"]), file) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{file} is corrupted: its header cannot be read ({error})") from error
    if size != 8 + length + end:
        raise CheckpointError(f"{file} is truncated or corrupted: it should be {8 + length + end} bytes, it is {size}")
    return tensors


def _names(folder: Path, variant: str | None) -> tuple[Path, Path]:
    """The file that holds all weights, and the one that lists the shards of a model in several."""
    tag = f".{variant}" if variant else ""
    return folder / f"model{tag}.safetensors", folder / f"model.safetensors.index{tag}.json"


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is corrupted: {error!r}") from error
    shards = [index.parent / name for name in names]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"{index} names shards that are not there: {', '.join(missing)}")
    return shards
