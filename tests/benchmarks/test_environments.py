"""A system's environment: its own packages over those of the benchmark."""

import subprocess
from pathlib import Path

import pytest
from harness import environments
from harness.environments import InstallationError, python_of
from systems import System


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "cache_folder", lambda: tmp_path / "cache")


def _package(folder: Path, name: str) -> str:
    """A package that pip can install without the network, for its backend is in the environment."""
    source = folder / name
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (source / "backend.py").write_text(
        f"""
import zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    file = "{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(directory + "/" + file, "w") as wheel:
        wheel.writestr("{name}.py", "VALUE = 7")
        wheel.writestr("{name}-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        tags = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("{name}-1.0.dist-info/WHEEL", tags)
        wheel.writestr("{name}-1.0.dist-info/RECORD", "")
    return file
"""
    )
    return str(source)


def _run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)


def test_it_has_its_own_package_and_those_of_the_benchmark(tmp_path: Path) -> None:
    system = System("a peer", package="peer", requirements=(_package(tmp_path, "peer_of_llmint8"),))
    python = python_of("peer", system)
    assert _run(python, "import peer_of_llmint8, torch, llmint8; print(peer_of_llmint8.VALUE)").stdout == "7\n"
    made = (python.parent.parent / "ready").stat().st_mtime_ns
    assert python_of("peer", system) == python
    assert (python.parent.parent / "ready").stat().st_mtime_ns == made  # nothing is installed twice


def test_the_benchmark_does_not_see_it(tmp_path: Path) -> None:
    python = python_of("peer", System("a peer", package="peer", requirements=(_package(tmp_path, "only_in_its_own"),)))
    plain = python_of("ours", System("ours", package="llmint8"))
    assert plain != python
    assert _run(plain, "import only_in_its_own").returncode


def test_what_it_must_go_without_is_taken_out(tmp_path: Path) -> None:
    both = (_package(tmp_path, "wanted_peer"), _package(tmp_path, "unwanted_peer"))
    python = python_of("peer", System("a peer", package="peer", requirements=both, without=("unwanted_peer",)))
    assert _run(python, "import wanted_peer").returncode == 0
    assert _run(python, "import unwanted_peer").returncode


def test_what_cannot_be_installed_says_so_and_is_tried_again(tmp_path: Path) -> None:
    system = System("a peer", package="peer", requirements=(str(tmp_path / "no such folder"),))
    for _ in range(2):
        with pytest.raises(InstallationError, match="no such folder"):
            python_of("peer", system)
