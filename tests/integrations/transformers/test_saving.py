"""A save that fails or is interrupted, at any point, leaves the old checkpoint or none, never a mixture."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import llmint8
from llmint8.integrations.transformers import saving

RunModel = Callable[[PreTrainedModel], Tensor]


@pytest.fixture
def models(make_checkpoint: Callable[..., Path], tmp_path: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two int8 models with different weights of the same shapes."""
    old = llmint8.from_pretrained(make_checkpoint())
    float_model = llmint8.from_pretrained(make_checkpoint(), load_in_8bit=False)
    with torch.no_grad():
        for parameter in float_model.parameters():
            parameter.mul_(1.5)
    return old, llmint8.quantize_(float_model)


class Interruption(BaseException):
    """Like Ctrl-C: not an Exception."""


def test_interrupted_at_every_file_operation(
    models: tuple[PreTrainedModel, PreTrainedModel],
    run_model: RunModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = models
    outputs = [run_model(old), run_model(new)]
    seen = set()
    for at in range(100):
        folder = tmp_path / f"save{at}"
        old.save_pretrained(folder, max_shard_size="40KB")
        count = 0

        def guarded(function: Callable, at: int = at) -> Callable:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal count
                count += 1
                if count > at:  # and whatever a clean-up would do fails as well: the process is gone
                    raise Interruption
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("unlink", "replace", "chmod", "mkdir"):
                patch.setattr(Path, name, guarded(getattr(Path, name)))
            import transformers.modeling_utils

            patch.setattr(
                transformers.modeling_utils, "safe_save_file", guarded(transformers.modeling_utils.safe_save_file)
            )
            patch.setattr(saving.shutil, "rmtree", lambda *args, **kwargs: None)
            try:
                new.save_pretrained(folder, max_shard_size="30KB")
                finished = True
            except Interruption:
                finished = False
        try:
            output = run_model(llmint8.from_pretrained(folder))
        except (FileNotFoundError, llmint8.CheckpointError):
            seen.add("none")
        else:
            match = [torch.equal(output, expected) for expected in outputs]
            assert any(match), f"a mixture after {at} operations"
            seen.add("old" if match[0] else "new")
        try:
            output = run_model(AutoModelForCausalLM.from_pretrained(folder))
        except (OSError, ValueError):  # there is no config.json
            pass
        else:
            assert any(torch.equal(output, expected) for expected in outputs)
        if finished:
            assert torch.equal(output, outputs[1])
            break
    assert finished
    assert seen == {"old", "none", "new"}


@pytest.mark.parametrize("existed", [True, False])
def test_a_failed_save_changes_nothing(
    existed: bool,
    models: tuple[PreTrainedModel, PreTrainedModel],
    run_model: RunModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = models
    folder = tmp_path / "int8"
    if existed:
        old.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*")}

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        new.save_pretrained(folder)
    assert folder.exists() == existed
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before


def test_a_killed_process_leaves_the_old_checkpoint(
    models: tuple[PreTrainedModel, PreTrainedModel], run_model: RunModel, tmp_path: Path
) -> None:
    old, new = models
    folder, source = tmp_path / "int8", tmp_path / "new"
    old.save_pretrained(folder)
    new.save_pretrained(source)
    code = f"""
import os, signal, llmint8, transformers.modeling_utils as m
model = llmint8.from_pretrained({str(source)!r})
save = m.safe_save_file
def save_and_die(*args, **kwargs):
    save(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
m.safe_save_file = save_and_die
model.save_pretrained({str(folder)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == -9
    assert torch.equal(run_model(llmint8.from_pretrained(folder)), run_model(old))
    (left,) = folder.glob(".llmint8-saving-*")
    new.save_pretrained(tmp_path / "elsewhere")
    new.save_pretrained(folder)
    assert left.exists()  # it may be that of a process that is still saving
    old.save_pretrained(folder)
    os.utime(left, (0, 0))
    new.save_pretrained(folder)
    assert not list(folder.glob(".llmint8-saving-*"))
    assert torch.equal(run_model(llmint8.from_pretrained(folder)), run_model(new))


def test_a_move_that_fails_keeps_the_new_checkpoint(
    models: tuple[PreTrainedModel, PreTrainedModel], run_model: RunModel, tmp_path: Path
) -> None:
    old, new = models
    folder = tmp_path / "int8"
    old.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").mkdir()  # where a file has to go
    with pytest.raises(OSError, match="generation_config") as caught:
        new.save_pretrained(folder)
    (left,) = folder.glob(".llmint8-saving-*")
    assert str(left) in caught.value.__notes__[0]
    assert torch.equal(run_model(llmint8.from_pretrained(left)), run_model(new))


def test_no_weights_of_another_save_stay(
    models: tuple[PreTrainedModel, PreTrainedModel], run_model: RunModel, tmp_path: Path
) -> None:
    old, new = models
    folder = tmp_path / "int8"
    old.save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.fp16.safetensors").write_text("another variant")
    new.save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "model.fp16.safetensors",
    }
    assert torch.equal(run_model(llmint8.from_pretrained(folder)), run_model(new))


def test_over_the_folder_it_was_loaded_from(make_checkpoint: Callable[..., Path], run_model: RunModel) -> None:
    """The weights of a model lie in the mapped file, which must not change under it."""
    folder = make_checkpoint()
    llmint8.from_pretrained(folder).save_pretrained(folder)
    model = llmint8.from_pretrained(folder)
    expected = run_model(model)
    model.save_pretrained(folder)
    assert torch.equal(run_model(model), expected)
    assert torch.equal(run_model(llmint8.from_pretrained(folder)), expected)


def test_variants(models: tuple[PreTrainedModel, PreTrainedModel], run_model: RunModel, tmp_path: Path) -> None:
    model = models[0]
    model.save_pretrained(tmp_path, variant="int8", max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.int8.json").exists()
    assert torch.equal(run_model(llmint8.from_pretrained(tmp_path, variant="int8")), run_model(model))


@pytest.mark.skipif(os.name == "nt", reason="files have no mode")
def test_weights_are_as_readable_as_the_config(models: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    models[0].save_pretrained(tmp_path / "int8")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "int8").iterdir()}
    assert len(modes) == 1


def test_a_file_is_not_a_folder(models: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        models[0].save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_float_models_are_saved_as_ever(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
