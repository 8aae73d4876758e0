"""Files that are written tensor after tensor are those that safetensors writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmint8.streaming.shard import Shard

DTYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


def tensors() -> dict[str, torch.Tensor]:
    """One of every dtype, and odd shapes, in no order."""
    generator = torch.Generator().manual_seed(0)
    made = {
        f"{'za'[i % 2]}{i}.{dtype}": torch.randint(0, 2, (3, i), generator=generator).to(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    return {**made, "no dimensions": torch.tensor(3, dtype=torch.uint8), "β": torch.ones(1), "empty": torch.empty(0, 4)}


def test_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    content = tensors()
    save_file(content, tmp_path / "expected", metadata={"format": "pt"})
    shard = Shard(tmp_path / "got", {name: tensor.to("meta") for name, tensor in content.items()})
    with shard:
        for name in reversed(content):
            shard.write(name, content[name])
        assert not (tmp_path / "got").exists()
    assert (tmp_path / "got").read_bytes() == (tmp_path / "expected").read_bytes()
    assert shard.size == (tmp_path / "got").stat().st_size
    assert shard.is_finished()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "got"]


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).view(3, 4)
    with Shard(tmp_path / "file", {"a": matrix.T, "b": matrix[1:, 1:]}) as shard:
        shard.write("a", matrix.T)
        shard.write("b", matrix[1:, 1:])
    loaded = load_file(tmp_path / "file")
    assert torch.equal(loaded["a"], matrix.T)
    assert torch.equal(loaded["b"], matrix[1:, 1:])


def test_is_there_only_when_it_is_complete(tmp_path: Path) -> None:
    content = {"a": torch.ones(4), "b": torch.zeros(4)}
    file = tmp_path / "file"
    with pytest.raises(ValueError, match="file lacks b"), Shard(file, content) as shard:
        shard.write("a", content["a"])
    assert not file.exists()
    with Shard(file, content) as shard:
        shard.write("a", content["a"])
        shard.write("b", content["b"])
    assert Shard(file, content).is_finished()
    assert not Shard(file, {"a": content["a"], "c": content["b"]}).is_finished()
    assert not Shard(tmp_path / "other", content).is_finished()


def test_refuses_a_dtype_that_safetensors_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x is torch\.complex128"):
        Shard(tmp_path / "file", {"x": torch.ones(1, dtype=torch.complex128)})
