"""The virtual environment of a system, so that the packages of one cannot change another."""

import hashlib
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

from systems import System

from harness.host import versions
from llmint8.runtime.user_cache import cache_folder


class InstallationError(RuntimeError):
    """A system that pip cannot install here; the message says why."""


def python_of(adapter: str, system: System) -> Path:
    """Returns the interpreter of a system's environment, made on the first call in the user's cache.

    It lies over the environment that runs the benchmark: torch and transformers are the same for every system, unless
    one asks for other versions, which then go into its own.

    Args:
        adapter: Names the folder.
        system: What is to be installed.

    Raises:
        InstallationError: pip failed.
    """
    if not system.requirements:
        return Path(sys.executable)
    below = versions("torch", "transformers")
    wanted = repr((sys.version, sys.prefix, below, system.requirements, system.without, dict(system.build)))
    folder = cache_folder() / "environments" / f"{adapter}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "over_the_benchmark.pth").write_text("\n".join(lines), encoding="utf-8")
    _pip(python, "install", *system.requirements, **system.build)
    if system.without:
        _pip(python, "uninstall", "--yes", *system.without)
    (folder / "ready").touch()
    return python


def _pip(python: Path, command: str, *arguments: str, **variables: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", command, *arguments]
    run = subprocess.run(pip, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or ["it printed no error"]
        raise InstallationError(f"pip {command} {' '.join(arguments)}: {errors[0][:300]}")
