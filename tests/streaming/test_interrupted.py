"""Killed at any moment, or out of space: nothing that loads is left, and a second run is as good as the first."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import llmint8
from llmint8.streaming import staging as staging_module
from llmint8.streaming.staging import staging

SIZE = "20KB"


@pytest.fixture
def two(make_checkpoint: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints with different weights of the same shapes."""
    first = make_checkpoint("llama", torch.bfloat16)
    model = llmint8.from_pretrained(first, load_in_8bit=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "second")
    return first, tmp_path / "second"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_killed_at_any_moment(two: tuple[Path, Path], tmp_path: Path) -> None:
    rounds = 16
    command = [sys.executable, str(Path(__file__).with_name("kill_worker.py")), *map(str, two), str(tmp_path)]
    run = subprocess.run([*command, str(rounds)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    refused = {"FileNotFoundError", "CheckpointError"}
    for outcome in result["outcomes"]:
        assert outcome["left"] in refused | {result["new"]} | ({result["old"]} if outcome["overwrite"] else set())
        assert outcome["hidden"] in refused | {result["new"]}
        assert outcome["same"]
    assert len(result["outcomes"]) == rounds
    assert sum(outcome["left"] != result["new"] for outcome in result["outcomes"]) > rounds // 4  # it was in time


class Interruption(BaseException):
    """Like Ctrl-C: not an Exception."""


def test_a_second_run_goes_on(two: tuple[Path, Path], tmp_path: Path) -> None:
    source, other = two
    llmint8.quantize_checkpoint(source, tmp_path / "expected", max_shard_size=SIZE)
    target = tmp_path / "target"
    files = target / staging_module._NAME / "files"

    def stop_at_half(name: str, done: int, total: int) -> None:
        if done > total / 2:
            raise Interruption

    def interrupt(checkpoint: Path) -> dict[str, int]:
        with pytest.raises(Interruption):
            llmint8.quantize_checkpoint(checkpoint, target, max_shard_size=SIZE, progress=stop_at_half)
        return {file.name: file.stat().st_mtime_ns for file in files.glob("*.safetensors")}

    finished = interrupt(source)
    assert len(finished) > 1
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        llmint8.from_pretrained(target)
    first_report: list[tuple] = []
    llmint8.quantize_checkpoint(source, target, max_shard_size=SIZE, progress=lambda *args: first_report.append(args))
    names = [name for name, _, _ in first_report]
    assert all(names.count(name) == 1 for name in finished)  # what was finished is not made again, tensor by tensor
    assert {name: (target / name).stat().st_mtime_ns for name in finished} == finished
    assert contents(target) == contents(tmp_path / "expected")

    # What another model, or other settings, left is not used.
    shutil.rmtree(target)
    interrupt(other)
    llmint8.quantize_checkpoint(source, target, max_shard_size=SIZE)
    assert contents(target) == contents(tmp_path / "expected")
    shutil.rmtree(target)
    interrupt(source)
    config = llmint8.Int8Config(skip_modules=["layers.0"])
    llmint8.quantize_checkpoint(source, target, config, max_shard_size=SIZE)
    llmint8.quantize_checkpoint(source, tmp_path / "skipped", config, max_shard_size=SIZE)
    assert contents(target) == contents(tmp_path / "skipped")


def test_what_is_in_a_folder_stays(two: tuple[Path, Path], tmp_path: Path) -> None:
    source, other = two
    target = tmp_path / "target"
    llmint8.quantize_checkpoint(other, target)
    (target / "notes").write_text("mine")
    before = contents(target)
    with pytest.raises(FileExistsError, match=r"is not empty; overwrite replaces"):
        llmint8.quantize_checkpoint(source, target)
    assert contents(target) == before
    llmint8.quantize_checkpoint(source, target, overwrite=True, max_shard_size=SIZE)
    llmint8.quantize_checkpoint(source, tmp_path / "expected", max_shard_size=SIZE)
    assert contents(target) == {**contents(tmp_path / "expected"), "notes": b"mine"}
    # An interrupted run that was to overwrite needs to be told again.
    with pytest.raises(Interruption):
        llmint8.quantize_checkpoint(other, target, overwrite=True, progress=_stop)
    with pytest.raises(FileExistsError):
        llmint8.quantize_checkpoint(other, target)


def _stop(name: str, done: int, total: int) -> None:
    raise Interruption


def test_a_full_disk(two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other = two
    target = tmp_path / "target"
    with monkeypatch.context() as patch:
        patch.setattr(staging_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
        with pytest.raises(OSError, match="No space left on device: 0.00 GB are needed and 0.00 GB are free") as caught:
            llmint8.quantize_checkpoint(source, target)
    assert caught.value.errno == errno.ENOSPC
    assert not target.exists()
    llmint8.quantize_checkpoint(other, target)
    before = contents(target)
    for overwrite, folder in ((False, tmp_path / "new"), (True, target)):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # the kernel refuses to write more
            with pytest.raises(OSError, match=r"File too large: .*model\.safetensors"):
                llmint8.quantize_checkpoint(source, folder, overwrite=overwrite)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "new").exists()
    assert contents(target) == before


def _hold(folder: Path, ready: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with staging(folder, {}):
        ready.set()
        done.wait(60)


def test_two_processes_do_not_meet(two: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "target"
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(target, ready, done))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RuntimeError, match="another process is quantizing into"):
            llmint8.quantize_checkpoint(two[0], target)
        assert os.listdir(target)  # its files are left alone
    finally:
        done.set()
        process.join()
    assert process.exitcode == 0
