"""`llmint8 quantize` on the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

import llmint8
from llmint8.streaming.shard import Shard
from llmint8.streaming.staging import _NAME

Run = Callable[..., Result]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_writes_what_python_writes(chat_checkpoint: Path, llmint8_command: Run, tmp_path: Path) -> None:
    options = ["--budget", "0.25", "--symmetric", "--skip", "layers.0", "--include", "lm_head", "--dtype", "float16"]
    result = llmint8_command("quantize", chat_checkpoint, tmp_path / "a", "--shard-size", "2MB", *options)
    assert result.exit_code == 0, result.output
    config = llmint8.Int8Config(budget=0.25, symmetric=True, skip_modules=["layers.0"], include_modules=["lm_head"])
    expected = llmint8.quantize_checkpoint(
        chat_checkpoint, tmp_path / "b", config, dtype="float16", max_shard_size="2MB"
    )
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert result.stdout == f"{tmp_path / 'a'}: {expected.layers} int8 layers, 0.01 GB instead of 0.01 GB\n"
    shards = sorted(file.name for file in (tmp_path / "a").glob("*.safetensors"))
    assert len(shards) > 1
    assert [line.split()[0] for line in result.stderr.splitlines()] == shards  # a line for each, where nobody watches
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--mode", "none"], {"mode": "none"}),
        (["--threshold", "6.0"], {"threshold": 6.0}),
        (["--budget", "32", "--absolute"], {"budget": 32, "relative": False}),
        (
            ["--format", "bitsandbytes", "--mode", "threshold"],
            {"mode": "threshold", "checkpoint_format": "bitsandbytes"},
        ),
    ],
)
def test_settings(
    options: list[str], settings: dict, chat_checkpoint: Path, llmint8_command: Run, tmp_path: Path
) -> None:
    result = llmint8_command("quantize", chat_checkpoint, tmp_path / "a", "--json", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = llmint8.quantize_checkpoint(chat_checkpoint, tmp_path / "b", llmint8.Int8Config(**settings))
    sizes = {"layers": 14, "bytes": expected.bytes, "source_bytes": expected.source_bytes}
    assert found == {"folder": str(tmp_path / "a"), **sizes}
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_mistake_is_one_line_and_nothing_is_written(
    chat_checkpoint: Path, int8_checkpoint: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    refused("/nowhere does not exist", "quantize", "/nowhere", target)
    refused("is int8 already", "quantize", int8_checkpoint, target)
    refused("is not empty; overwrite replaces the checkpoint in it (--overwrite)", "quantize", *[chat_checkpoint] * 2)
    refused("cannot be both the source and the target", "quantize", *[chat_checkpoint] * 2, "--overwrite")
    refused("--budget must be a number of columns or a share", "quantize", chat_checkpoint, target, "--budget", "few")
    refused("budget must be a number of columns or a share", "quantize", chat_checkpoint, target, "--budget", "1.5")
    refused("contradicts mode", "quantize", chat_checkpoint, target, "--mode", "none", "--threshold", "6")
    refused("include_modules names 'nothing'", "quantize", chat_checkpoint, target, "--include", "nothing")
    refused("Unit 'AS' not supported", "quantize", chat_checkpoint, target, "--shard-size", "5 bananas")
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what memory is anonymous")
def test_memory_is_that_of_a_tensor(smollm2: Path, tmp_path: Path) -> None:
    """The model takes 269 MB. Above the imports there is less than its largest weight, the embedding of 57 MB.

    That one is not quantized and is written from the mapped file. The largest int8 layer has 0.9 million weights, 3.5
    MB in fp32. What is left are modules that are imported late, and buffers of the kernels.
    """
    code = """
import json, re, sys, threading, time
from pathlib import Path
import llmint8.streaming

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def sample():
    while not done.is_set():
        seen.append(anonymous())
        time.sleep(0.002)

before, seen, done = anonymous(), [], threading.Event()
thread = threading.Thread(target=sample)
thread.start()
llmint8.quantize_checkpoint(sys.argv[1], sys.argv[2], max_shard_size="60MB")
done.set()
thread.join()
print(json.dumps([before, max(seen)]))
"""
    command = [sys.executable, "-c", code, str(smollm2), str(tmp_path / "a")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    before, peak = json.loads(run.stdout)
    assert peak - before < 57e6


def test_ctrl_c_keeps_what_is_finished(
    chat_checkpoint: Path, llmint8_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Shard.write

    def interrupted(self: Shard, name: str, tensor: torch.Tensor) -> None:
        if name == "model.norm.weight":
            raise KeyboardInterrupt
        write(self, name, tensor)

    arguments = ("quantize", chat_checkpoint, tmp_path / "a", "--shard-size", "50KB")
    with monkeypatch.context() as patch:
        patch.setattr(Shard, "write", interrupted)
        result = llmint8_command(*arguments)
    assert result.exit_code not in (0, 2)
    assert not (tmp_path / "a" / "config.json").exists()
    finished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "a" / _NAME / "files").glob("*.safetensors")}
    assert len(finished) > 1
    assert llmint8_command(*arguments).exit_code == 0
    assert {name: (tmp_path / "a" / name).stat().st_mtime_ns for name in finished} == finished
    assert llmint8_command("quantize", chat_checkpoint, tmp_path / "b", "--shard-size", "50KB").exit_code == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.filterwarnings("always:.*fused expert weights")
def test_a_warning_is_one_line(make_checkpoint: Callable[..., Path], llmint8_command: Run, tmp_path: Path) -> None:
    result = llmint8_command("quantize", make_checkpoint("mixtral"), tmp_path / "a")
    assert result.exit_code == 0, result.output
    first, second = result.stderr.splitlines()
    assert first.startswith("llmint8: 4 fused expert weights, ")
    assert second.startswith("model.safetensors (")
