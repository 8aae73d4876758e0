"""A checkpoint in the place of another: nothing of the old one stays that would be taken for the new one's."""

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import llmint8
from llmint8.streaming.staging import _NAME


@pytest.fixture
def source(make_checkpoint: Callable[..., Path]) -> Path:
    folder = make_checkpoint("llama", torch.bfloat16)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("first")
    (folder / "chat_template.jinja").write_text("first")
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "LICENSE").write_text("first")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_of_templates_twice(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    llmint8.quantize_checkpoint(source, target)
    (source / "additional_chat_templates" / "tools.jinja").write_text("second")
    llmint8.quantize_checkpoint(source, target, overwrite=True)
    llmint8.quantize_checkpoint(source, tmp_path / "expected")
    assert contents(target) == contents(tmp_path / "expected")
    assert contents(target)["additional_chat_templates/tools.jinja"] == b"second"


def test_the_folder_of_templates_can_be_entered(source: Path, tmp_path: Path) -> None:
    llmint8.quantize_checkpoint(source, tmp_path / "target")
    (tmp_path / "usual").mkdir()
    folder = tmp_path / "target" / "additional_chat_templates"
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_a_move_that_fails_loses_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    llmint8.quantize_checkpoint(source, tmp_path / "expected", max_shard_size="20KB")
    shutil.copytree(tmp_path / "expected", target)
    (target / "LICENSE").unlink()
    (target / "LICENSE").mkdir()  # where a file has to go
    (target / "LICENSE" / "mine").write_text("mine")
    with pytest.raises(OSError, match="LICENSE"):
        llmint8.quantize_checkpoint(source, target, overwrite=True, max_shard_size="20KB")
    assert not (target / "config.json").exists()  # what is in the place has begun to change
    left = {**contents(target), **contents(target / _NAME / "files")}
    assert contents(tmp_path / "expected").items() <= left.items()
    assert (target / "LICENSE" / "mine").read_text() == "mine"

    shutil.rmtree(target / "LICENSE")
    llmint8.quantize_checkpoint(source, target, max_shard_size="20KB")  # goes on, as after an interruption
    assert contents(target) == contents(tmp_path / "expected")


def test_companions_of_the_old_checkpoint_go(
    source: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    llmint8.quantize_checkpoint(source, target)
    (target / "notes.txt").write_text("mine")
    for name in ("chat_template.jinja", "special_tokens_map.json", "LICENSE"):
        (source / name).unlink()
    shutil.rmtree(source / "additional_chat_templates")
    llmint8.quantize_checkpoint(source, target, overwrite=True)
    llmint8.quantize_checkpoint(source, tmp_path / "expected")
    mine = {"notes.txt": b"mine", "LICENSE": b"first"}  # not what transformers reads
    assert contents(target) == {**contents(tmp_path / "expected"), **mine}


def test_lists_of_other_weights_are_not_copied(source: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin.index.json", "tf_model.h5.index.json", "model.safetensors.index.fp16.json"):
        (source / name).write_text("{}")
    llmint8.quantize_checkpoint(source, tmp_path / "target")
    assert not list((tmp_path / "target").glob("*index*"))
