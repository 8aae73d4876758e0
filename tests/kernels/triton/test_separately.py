"""Runs the tests that need a process of their own: Triton is interpreted or emulated from its import on."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton")

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
# A folder beside the repository that may hold the emulator; one on PYTHONPATH is found, too.
BESIDE = HERE.parents[3] / "shared"


INTERPRET = {"TRITON_INTERPRET": "1"}
ENVIRONMENTS = {
    "emulated": {},
    "interpreted/test_doctor.py": INTERPRET,
    "interpreted/test_int8_linear.py": INTERPRET,
    "interpreted/test_model.py": INTERPRET,
}


def path_of_emulator() -> str | None:
    """The PYTHONPATH with which the emulator is found."""
    path = os.environ.get("PYTHONPATH", "")
    if (BESIDE / "ptxemu" / "__init__.py").is_file():
        return os.pathsep.join(filter(None, [str(BESIDE), path]))
    return path if importlib.util.find_spec("ptxemu") else None


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Runs the tests, all at once: each process has one thread."""
    running = {}
    for folder, variables in ENVIRONMENTS.items():
        if folder == "emulated" and path_of_emulator() is None:
            continue
        environment = {**os.environ, **variables, "LLMINT8_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
        if folder == "emulated":
            environment["PYTHONPATH"] = path_of_emulator() or ""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--show-capture=no", HERE / folder]
        pipe = subprocess.PIPE
        running[folder] = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)
    yield running
    for process in running.values():
        process.kill()


@pytest.mark.parametrize("folder", ENVIRONMENTS)
def test_in_a_process_of_its_own(folder: str, runs: dict[str, subprocess.Popen[str]]) -> None:
    if folder not in runs:
        pytest.skip("left out: there is no ptxemu, the emulator of PTX")
    output, _ = runs[folder].communicate()
    print(output[-8000:])
    assert runs[folder].returncode == 0, f"tests in {folder} failed, see above"
    assert " passed" in output
