"""Compiling the native kernels: once per user, and what happens where that is not possible."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmint8.kernels.cpu import build, native

RUN = (
    "import torch, llmint8\n"
    "torch.manual_seed(0)\n"
    "model = llmint8.quantize_(torch.nn.Sequential(torch.nn.Linear(64, 32)))\n"
    "print(model(torch.randn(40, 64)).double().sum().item())\n"
    "from llmint8.kernels.cpu import native; print(native.is_loaded())"
)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert process.returncode == 0, process.stderr
    return process


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_a_compiler_one_warning_and_the_same_results(tmp_path: Path) -> None:
    here = run(RUN).stdout.split()
    there = run(RUN, LLMINT8_CACHE=str(tmp_path), PATH="", CXX="")
    total, loaded = there.stdout.split()
    assert loaded == "False"
    assert float(total) == pytest.approx(float(here[0]), rel=1e-4)
    assert there.stderr.count("there is no C++ compiler") == 1


def test_a_failed_compilation_is_reported_once_and_not_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    compiler = script(tmp_path / "cxx", f"echo ran >> {log}; echo 'error: no such flag' >&2; exit 1")
    environment = {"LLMINT8_CACHE": str(tmp_path / "cache"), "CXX": compiler}
    first = run(RUN, **environment)
    assert first.stderr.count("error: no such flag") == 1
    assert first.stdout.split()[1] == "False"
    tried = log.read_text()
    second = run(RUN, **environment)
    assert "failed before" in second.stderr
    assert log.read_text() == tried
    assert not list((tmp_path / "cache/kernels").glob("*.so"))


def test_native_kernels_can_be_left_out(tmp_path: Path) -> None:
    process = run(RUN, LLMINT8_NATIVE="0", LLMINT8_CACHE=str(tmp_path))
    assert process.stdout.split()[1] == "False"
    assert "llmint8" not in process.stderr
    assert not list(tmp_path.iterdir())


def test_two_processes_at_once_compile_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Writes what follows -o.
    fake = f'echo "$@" >> {log}; sleep 0.2; while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    environment = os.environ | {"CXX": script(tmp_path / "cxx", fake), "PATH": os.environ["PATH"]}
    target = tmp_path / "kernels" / "library.so"
    code = (
        f"from pathlib import Path; from llmint8.kernels.cpu import native; native._build_once(Path({str(target)!r}))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert target.read_text() == "made\n"
    commands = log.read_text().splitlines()
    assert len(commands) == len(set(commands))  # no file was compiled twice
    assert sum(" -shared " in f" {command} " for command in commands) == 1
    assert sorted(path.name for path in target.parent.iterdir()) == ["library.lock", "library.so"]


def test_an_instruction_set_can_be_chosen() -> None:
    if not native.load():
        pytest.skip("there is no compiler for the native kernels")
    process = run(RUN, LLMINT8_CPU_ISA="portable")
    assert process.stdout.split()[1] == "True"


def test_the_library_is_another_one_for_other_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    name = build.library_name()
    assert name == build.library_name()
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-g"])
    assert build.library_name() != name
    monkeypatch.undo()
    monkeypatch.setattr(build.torch, "__version__", "9.9.9")
    assert build.library_name() != name
