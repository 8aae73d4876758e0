"""Loads the native kernels: those that came with the package, or those compiled once per user.

`LLMINT8_NATIVE=0` leaves them out. `LLMINT8_CPU_ISA` chooses an instruction set by name, for tests and comparisons.
"""

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from llmint8.kernels import FORCED_BACKEND
from llmint8.kernels.cpu import build
from llmint8.runtime.user_cache import cache_folder

PREBUILT = Path(__file__).parent / "prebuilt"

_lock = threading.Lock()
_loaded: bool | None = None
_why_not: str | None = None


def load() -> bool:
    """Makes the native kernels the ones that run on a CPU, compiling them if this user has not done so before.

    Returns:
        Whether they run. If not, a warning has said why, once.

    Raises:
        ValueError: `LLMINT8_CPU_ISA` names none of this processor's instruction sets.
    """
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load()
                if _loaded and (isa := os.environ.get("LLMINT8_CPU_ISA")):
                    use_instruction_set(isa)
    return _loaded


def why_not() -> str | None:
    """Returns why the native kernels do not run; None if they do."""
    load()
    return _why_not


def is_loaded() -> bool:
    """Whether the native kernels run by now."""
    return bool(_loaded)


def instruction_sets() -> list[str]:
    """Returns the names of the instruction sets that this processor has kernels for, best first."""
    return torch.ops.llmint8_cpu.instruction_sets() if load() else []


def use_instruction_set(name: str) -> None:
    """Runs the kernels of an instruction set from now on, in the whole process; not while another thread runs some.

    Raises:
        ValueError: This processor does not have it, or there are no kernels for it.
    """
    known = torch.ops.llmint8_cpu.instruction_sets()
    if name not in known:
        raise ValueError(f"this processor has no instruction set {name}; there are kernels for {', '.join(known)}")
    torch.ops.llmint8_cpu.use_instruction_set(name)


def library_path() -> Path:
    """Returns the file that the kernels are loaded from, which may still have to be compiled."""
    name = build.library_name()
    return PREBUILT / name if (PREBUILT / name).is_file() else cache_folder() / "kernels" / name


def _load() -> bool:
    global _why_not
    if os.environ.get("LLMINT8_NATIVE") == "0":
        _why_not = "LLMINT8_NATIVE=0 leaves the native kernels out"
        return False
    if FORCED_BACKEND == "triton":
        _why_not = "LLMINT8_BACKEND=triton leaves the native kernels out"
        return False
    try:
        path = library_path()
        if not path.is_file():
            _build_once(path)
        torch.ops.load_library(path)
    except (RuntimeError, OSError) as error:  # there may be no home folder, either
        _why_not = str(error)
        warnings.warn(
            f"llmint8 runs on PyTorch's operators, several times slower than its own kernels: {error}. "
            "LLMINT8_NATIVE=0 says that this is meant",
            stacklevel=2,
        )
        return False
    return True


def _build_once(path: Path) -> None:
    """Compiles unless it failed before; of several processes one does, the others wait for it."""
    failure = path.with_suffix(".failed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _file_lock(path.with_suffix(".lock")):
        if path.is_file():
            return
        if failure.is_file():
            raise build.BuildError(f"compiling them failed before; see {failure}, and delete it to try again")
        build.find_compiler()
        try:
            build.build(path, _report)
        except build.BuildError as error:
            failure.write_text(f"{time.ctime()}\n{error}\n", encoding="utf-8")
            raise


def _report(line: str) -> None:
    print(f"llmint8: compiling the CPU kernels, once for this torch: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # a platform that has no native kernels either
        yield
        return
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
