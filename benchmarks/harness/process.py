"""Starts a system in a process of its own environment and asks it."""

import contextlib
import importlib
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from systems import ADAPTERS, MORE_ADAPTERS, System

from harness.environments import InstallationError, python_of


class BenchmarkError(RuntimeError):
    """A system did not do what was asked; the message says why, in a line."""


def systems(names: str = "") -> dict[str, System]:
    """Returns systems by the name of their adapter.

    Args:
        names: Adapters separated by commas; those of the main table if empty.

    Raises:
        ValueError: There is no such adapter.
    """
    wanted = names.split(",") if names else ADAPTERS
    known = ADAPTERS + MORE_ADAPTERS
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"there is no system {unknown[0]!r}; there are {', '.join(known)}")
    return {name: importlib.import_module(f"systems.{name}").SYSTEM for name in wanted}


# What systems read instead of a checkpoint, by adapter and checkpoint.
_prepared: dict[tuple[str, str], str] = {}


class Process:
    """A loaded system; a context that ends it."""

    def __init__(self, adapter: str, system: System, checkpoint: Path, device: str, threads: int, limit: float) -> None:
        """Starts it and waits until it has loaded.

        Args:
            adapter: Its module in `systems`.
            system: What that says of itself.
            checkpoint: Folder of a 16-bit checkpoint.
            device: "cpu", or a GPU as torch names it.
            threads: Threads of the processor.
            limit: Seconds for loading, and for each answer.

        Raises:
            BenchmarkError: It cannot be installed or loaded, or took too long.
        """
        self._limit = limit
        setup = {"adapter": adapter, "checkpoint": str(checkpoint.resolve()), "device": device, "threads": threads}
        try:
            python = python_of(adapter, system)
        except InstallationError as error:
            raise BenchmarkError(f"cannot be installed: {error}") from error
        if hasattr(importlib.import_module(f"systems.{adapter}"), "checkpoint_of"):
            key = (adapter, setup["checkpoint"])
            if key not in _prepared:
                # In a process of its own, for what it needs is not the memory of loading.
                self._start(python, threads)
                _prepared[key] = self._first({**setup, "only_prepare": True})["checkpoint"]
                self.stop()
            setup["checkpoint"] = _prepared[key]
        self._start(python, threads)
        self.loaded = self._first({**setup, "only_prepare": False})

    def _start(self, python: Path, threads: int) -> None:
        self._ended = ""  # why, once it has
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, a pipe that nobody reads would stop who writes much
        self._process = subprocess.Popen(
            [python, "-m", "harness.worker"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )

    def _first(self, setup: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._ask(setup)
        except BenchmarkError:
            self.stop()
            raise

    def ask(self, kind: str, **request: Any) -> dict[str, Any]:
        """Returns the answer to a request, the arguments of the function of that name in `harness.worker`.

        Raises:
            BenchmarkError: It could not do it, ended, or took too long.
        """
        answer = self._ask({"kind": kind, **request})
        if "failed" in answer:
            raise BenchmarkError(answer["failed"])
        return answer

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._ended:
            raise BenchmarkError(self._ended)
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise BenchmarkError(self._reason()) from None
        end = time.monotonic() + self._limit
        if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            self.stop()
            self._ended = f"took more than {self._limit:g} s"
            raise BenchmarkError(self._ended)
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(self._reason())
        return json.loads(line)

    def _reason(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        self._ended = f"ended with {code}: {lines[-1][:300] if lines else 'it printed nothing'}"
        return self._ended

    def stop(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what was still to be sent to who is gone
                stream.close()  # type: ignore[union-attr]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
