"""Runs the tests that need a process of their own: Triton is interpreted or emulated from its import on."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
# A folder beside the repository that may hold the emulator; one on PYTHONPATH is found, too.
BESIDE = HERE.parents[3] / "shared"


def run_tests(folder: str, **environment: str) -> None:
    """Runs the tests of a folder; their output is shown if they fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / folder]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    print(run.stdout[-8000:], run.stderr[-2000:])
    assert run.returncode == 0, f"tests in {folder} failed, see above"


def test_interpreted() -> None:
    run_tests("interpreted", TRITON_INTERPRET="1", LLMINT8_BACKEND="triton")


def test_emulated() -> None:
    beside = BESIDE if (BESIDE / "ptxemu" / "__init__.py").is_file() else None
    if beside is None and importlib.util.find_spec("ptxemu") is None:
        pytest.skip("left out: there is no ptxemu, the emulator of PTX")
    path = os.pathsep.join(filter(None, [str(beside or ""), os.environ.get("PYTHONPATH", "")]))
    run_tests("emulated", LLMINT8_BACKEND="triton", PYTHONPATH=path)
