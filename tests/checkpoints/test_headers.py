import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llmint8 import CheckpointError
from llmint8.checkpoints.headers import check_folder, check_scales, read_headers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(3, 4, dtype=torch.int8), "a.weight_scale": torch.ones(3, 1)}, path)
    (tmp_path / "config.json").write_text("{}")
    return path


def test_headers(file: Path) -> None:
    tensors = read_headers([file, "pytorch_model.bin"])
    assert {n: (t.dtype, t.shape, t.file) for n, t in tensors.items()} == {
        "a.weight": ("I8", (3, 4), file),
        "a.weight_scale": ("F32", (3, 1), file),
    }
    check_scales(tensors)
    check_folder(file.parent)


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 150, -1])
def test_a_truncated_file_is_named(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is (truncated|corrupted)"):
        check_folder(file.parent)


def test_a_corrupted_header_is_named(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[9:14] = b"\xff\xfe{{{"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupted"):
        read_headers([file])
    file.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_headers([file])


@given(st.binary(max_size=200))
def test_no_bytes_give_another_error(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(data)) + data)
        error = None
        try:
            read_headers([path])
        except CheckpointError as raised:
            error = raised
        assert error is None or str(path) in str(error)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": torch.ones(3, 4, dtype=torch.int8)}, "scale a.weight_scale is missing"),
        ({"a.weight": torch.ones(3, 4, dtype=torch.int8), "a.weight_scale": torch.ones(3)}, r"F32 \[3\]"),
        ({"a.weight": torch.ones(3, 4, dtype=torch.int8), "a.weight_scale": torch.ones(4, 1)}, r"F32 \[4, 1\]"),
        ({"a.weight": torch.ones(12, dtype=torch.int8), "a.weight_scale": torch.ones(5, 1)}, r"I8 \[12\]"),
        ({"a.weight": torch.ones(3, 4, dtype=torch.int8), "a.weight_scale": torch.ones(3, 1).half()}, "F16"),
        ({"a.weight": torch.ones(3, 4, dtype=torch.int8), "a.SCB": torch.ones(3, 1)}, r"F32 \[3, 1\]"),
    ],
)
def test_a_scale_that_does_not_fit_is_named(tmp_path: Path, tensors: dict, message: str) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        check_scales(read_headers([tmp_path / "model.safetensors"]))


def test_folders_that_are_no_checkpoint(file: Path) -> None:
    folder = file.parent
    index = folder / "model.safetensors.index.json"
    file.rename(folder / "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"not there: model-2\.safetensors"):
        check_folder(folder)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="index.json is corrupted"):
        check_folder(folder)
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        check_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="use_safetensors=False"):
        check_folder(folder)
    check_folder(folder, use_safetensors=False)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        check_folder(folder)
