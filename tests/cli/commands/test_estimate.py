"""`llmint8 estimate` on the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import llmint8
from llmint8.cli.main import make_app

runner = CliRunner()


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("mixtral", torch.bfloat16)


def test_prints_what_fits_in_100_columns(checkpoint: Path) -> None:
    result = runner.invoke(make_app(), ["estimate", str(checkpoint), "--context", "100", "--batch", "2"])
    assert result.exit_code == 0, result.output
    for words in ("Memory in GiB", "experts.gate_up_proj", "KV cache", "workspace", "RTX 4090 24 GB", "batch 2"):
        assert words in result.output
    assert max(map(len, result.output.splitlines())) <= 100
    assert "\x1b" not in result.output


def test_json_is_what_python_gives(checkpoint: Path) -> None:
    options = ["--context", "100", "--batch", "2", "--dtype", "float16", "--device", "cpu", "--include", "lm_head"]
    result = runner.invoke(make_app(), ["estimate", str(checkpoint), "--json", "--skip", "q_proj", *options])
    assert result.exit_code == 0, result.output
    settings = llmint8.Int8Config(include_modules=["lm_head"], skip_modules=["q_proj"])
    expected = llmint8.estimate(checkpoint, settings, context=100, batch=2, dtype="float16", device="cpu")
    assert json.loads(result.output) == json.loads(json.dumps(expected.to_dict()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere does not exist"),
        (["{folder}", "--batch", "-1"], "batch must be at least 1, got -1"),
        (["{folder}", "--context", "0"], "context must be at least 1, got 0"),
        (["{folder}", "--dtype", "int4"], "dtype must be float16, bfloat16 or float32, got int4"),
        (["{folder}", "--include", "nothing"], "include_modules names 'nothing'"),
        (["nobody/nothing"], "the hub gave no model of that name"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str, checkpoint: Path) -> None:
    result = runner.invoke(make_app(), ["estimate", *(a.replace("{folder}", str(checkpoint)) for a in arguments)])
    assert result.exit_code == 2
    assert result.stderr.startswith("llmint8: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_runs_as_a_module(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "llmint8", "estimate", str(checkpoint / "config.json"), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    expected = llmint8.estimate(checkpoint)
    assert json.loads(run.stdout)["int8"]["total"] == expected.int8.total
    assert run.stderr == ""
