"""`llmint8 doctor` on the command line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import Result

from llmint8 import doctor
from llmint8.cli.commands.doctor import _show
from llmint8.kernels.cpu import build, native

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.VARIABLES:
        if name.startswith("LLMINT8_") and name != "LLMINT8_CACHE":
            monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not native.load(), reason="the native kernels cannot be built here")
def test_says_what_runs_and_why(llmint8_command: Run) -> None:
    result = llmint8_command("doctor", "--json")
    found = json.loads(result.stdout)
    best = native.instruction_sets()[0]
    assert found["cpu"]["kernels"] == best
    assert found["cpu"]["instruction_sets"] == native.instruction_sets()
    assert found["cpu"]["library"] == str(native.library_path())
    assert found["cpu"]["check"]["passed"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["transformers"] == transformers.__version__
    assert found["memory"] > found["free_memory"] > 0
    assert found["extras"]["analysis"] == []
    assert "test" not in found["extras"]
    if not torch.cuda.is_available():
        assert result.exit_code == (1 if best == "portable" else 0)
    text = llmint8_command("doctor").stdout
    for words in (f"kernels: {best}", "self-check: right", f"torch {torch.__version__}", "int8 layers run on the"):
        assert words in text
    assert "\x1b" not in text


def test_the_slow_path_says_what_to_do(llmint8_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setenv("LLMINT8_NATIVE", "0")
    result = llmint8_command("doctor")
    assert result.exit_code == 1
    assert "kernels: PyTorch (LLMINT8_NATIVE=0 leaves the native kernels out)" in result.stdout
    assert "- unset LLMINT8_NATIVE for the native kernels" in result.stdout

    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.delenv("LLMINT8_NATIVE")
    monkeypatch.setenv("LLMINT8_CACHE", str(tmp_path))  # where no kernels are
    monkeypatch.setattr(native, "PREBUILT", tmp_path)
    monkeypatch.setenv("CXX", "/no/compiler")
    result = llmint8_command("doctor")
    assert result.exit_code == 1
    assert "kernels: PyTorch (there is no C++ compiler (/no/compiler))" in result.stdout
    assert "- install a C++ compiler" in result.stdout
    assert result.stderr == ""


def test_wrong_results_are_noticed(llmint8_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.ops.int8_linear
    monkeypatch.setattr(doctor.ops, "int8_linear", lambda *args, **kwargs: right(*args, **kwargs) * 1.01)
    result = llmint8_command("doctor")
    assert result.exit_code == 1
    assert "self-check: WRONG" in result.stdout
    assert "computes wrong results" in result.stdout


def test_gpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.Check(1e-6, True)
    new = doctor.Gpu("GeForce", "8.9", 24 * 10**9, 20 * 10**9, "Triton, int8 x int8", "Triton works", True, right)
    old = dataclasses.replace(new, name="Pascal", capability="6.1", kernels="PyTorch", reason="too old", fast=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor, "_gpu", lambda index: (new, old)[index])
    found = doctor.diagnose()
    assert found.device == "GPU"
    assert not found.fast
    assert list(found.advice) == ["for fast kernels on the Pascal install Triton (pip install triton)"]
    _show(found)
    text = capsys.readouterr().out
    for words in ("gpu 0", "GeForce, 8.9, 20.0 GB free of 24.0 GB", "gpu 1", "int8 layers run on the GPU: Triton"):
        assert words in text
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert doctor.diagnose().fast


@pytest.mark.parametrize(
    ("architecture", "kernels"),
    [
        (75, "Triton, up to 16 rows weights only, above int8 x int8 by torch._int_mm"),
        (89, "Triton, up to 32 rows weights only, above int8 x int8"),
        (90, "Triton, up to 256 rows weights only, above PyTorch with dequantized weights"),
        (103, "Triton, up to 32 rows weights only, above PyTorch with dequantized weights"),
    ],
)
def test_what_a_gpu_runs(architecture: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from llmint8.kernels.triton import tiles

    monkeypatch.setattr(tiles, "architecture", lambda device: architecture)
    monkeypatch.setattr(tiles, "tables", lambda device: tiles.built_in(architecture))
    assert doctor._triton_kernels(torch.device("cpu")) == kernels


def test_a_wrong_instruction_set_is_refused(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.load():
        pytest.skip("the native kernels cannot be built here")
    monkeypatch.setattr(native, "_loaded", None)
    monkeypatch.setenv("LLMINT8_CPU_ISA", "mmx")
    refused("mmx", "doctor")


def test_the_compiler_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert doctor.diagnose().cpu.compiler == build.find_compiler()
