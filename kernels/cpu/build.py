"""Compiles the native kernels in `csrc/` into one shared library, for the torch that is installed.

Every file is compiled for its own instruction set; which one runs is decided when the library is loaded, so the same
library serves every processor of an architecture.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
# No step that an instruction set could round otherwise: codes and scales are the same in all of them.
KERNEL_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
FLAGS = ["-std=c++20", "-fPIC", "-DNDEBUG", "-w"]
# PyTorch's threads are OpenMP's; Apple's compiler does not have it, and there one thread does the work.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
_COMMON = {"instruction_sets.cpp": [], "portable.cpp": KERNEL_FLAGS}
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512"]
# Architecture -> file -> flags.
KERNELS = {
    "x86_64": {
        **_COMMON,
        "avx2.cpp": [*KERNEL_FLAGS, *_AVX2],
        "avxvnni.cpp": [*KERNEL_FLAGS, *_AVX2, "-mavxvnni"],
        "avx512vnni.cpp": [*KERNEL_FLAGS, *_AVX2, *_AVX512],
    },
    "aarch64": {**_COMMON, "neon_dotprod.cpp": [*KERNEL_FLAGS, "-march=armv8.2-a+dotprod"]},
}


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why."""


def architecture() -> str:
    """Returns the name of this processor's architecture, as in `KERNELS` where it is one of those."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def library_name() -> str:
    """Returns the name of the library file, which is another one for other sources, flags, torch or processors."""
    key = hashlib.sha256()
    kernels = repr(KERNELS.get(architecture(), _COMMON))
    for part in (sys.platform, architecture(), torch.__version__, *FLAGS, *OPENMP, kernels):
        key.update(part.encode())
    for file in sorted(SOURCES.iterdir()):
        if file.suffix in {".cpp", ".h", ".inl"}:
            key.update(file.name.encode() + file.read_bytes())
    return f"llmint8-cpu-torch{torch.__version__.split('+')[0]}-{key.hexdigest()[:16]}.so"


def find_compiler() -> str:
    """Returns the path of a C++ compiler: `$CXX`, or one on the search path.

    Raises:
        BuildError: There is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in names:
        if path := shutil.which(name):
            return path
    raise BuildError(f"there is no C++ compiler ({', '.join(names)})")


def build(target: Path, report: Callable[[str], None] = lambda _: None) -> None:
    """Compiles the library.

    Args:
        target: File to write; it appears only when it is complete.
        report: Called with a line of progress now and then.

    Raises:
        BuildError: There is no compiler, the platform has no GCC or Clang, or compiling fails.
        OSError: The compiler was stopped, or a file cannot be written.
    """
    if sys.platform == "win32":
        raise BuildError("the native kernels are written for GCC and Clang, and Windows has neither")
    compiler = find_compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        torch_flags = ["-O2", *OPENMP, *_torch_includes()]
        files = {
            **dict.fromkeys(("operators.cpp", "model_operators.cpp", "decoder_layer.cpp", "arena.cpp"), torch_flags),
            **KERNELS.get(architecture(), _COMMON),
        }
        commands = {
            file: [compiler, *FLAGS, *flags, "-c", str(SOURCES / file), "-o", str(Path(folder, file).with_suffix(".o"))]
            for file, flags in files.items()
        }
        _run(commands, report)
        objects = [str(Path(folder, file).with_suffix(".o")) for file in files]
        library = Path(folder, target.name)
        torch_lib = Path(torch.__file__).parent / "lib"
        link = [compiler, "-shared", *OPENMP, *objects, "-o", str(library), f"-L{torch_lib}", "-ltorch_cpu", "-lc10"]
        _run({"linking": link}, lambda _: None)
        os.replace(library, target)
    report(f"compiled in {time.monotonic() - start:.0f} s")


def _torch_includes() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    abi = int(torch.compiled_with_cxx11_abi())
    return [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]


def _run(commands: dict[str, list[str]], report: Callable[[str], None]) -> None:
    """Runs commands, as many at once as there are processors, the first ones first."""
    waiting = list(commands.items())
    running: list[tuple[str, subprocess.Popen[str]]] = []
    done = 0
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                name, command = waiting.pop(0)
                try:
                    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                except OSError as error:
                    raise BuildError(f"{command[0]} does not run: {error}") from error
                running.append((name, process))
            name, process = next(((n, p) for n, p in running if p.poll() is not None), running[0])
            messages = process.communicate()[1]
            running.remove((name, process))
            done += 1
            if process.returncode < 0 or "Killed" in messages:  # out of memory, say; another time it may work
                raise OSError(f"the compiler was stopped while it compiled {name}")
            if process.returncode != 0:
                raise BuildError(f"{name} does not compile: {' '.join(process.args)}\n{messages[-4000:]}")  # type: ignore[arg-type]
            report(f"{done}/{len(commands)} {name}")
    finally:
        for _, process in running:
            process.kill()
            process.communicate()
