"""What this machine can do at most: bytes read from memory in a second, and operations."""

import ctypes
import functools
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llmint8.kernels.cpu import build

Loops = Callable[[torch.Tensor, int, int], float]
BYTES = 256 << 20  # larger than the caches


@functools.cache
def read_loops() -> Loops:
    """Compiles three loops that read memory: (memory, threads, which) -> seconds."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "read.so"
        source = Path(__file__).with_name("read_bandwidth.cpp")
        flags = ["-std=c++20", "-O3", "-march=native", "-mprefer-vector-width=512", "-shared", "-fPIC", "-pthread"]
        if build.architecture() != "x86_64":
            flags.remove("-mprefer-vector-width=512")
        subprocess.run([build.find_compiler(), *flags, str(source), "-o", str(library)], check=True)
        read = ctypes.CDLL(str(library)).read_seconds
    read.restype = ctypes.c_double
    return lambda tensor, threads, which: read(
        ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel() * tensor.element_size()), threads, which
    )


def read_gigabytes(threads: int, device: str = "cpu") -> float:
    """Returns the fastest of a few readings, in GB/s; on a GPU that of a copy, both directions counted."""
    if device != "cpu":
        source, target = (torch.empty(BYTES, dtype=torch.int8, device=device) for _ in range(2))
        return 2 * BYTES / 1e9 / fastest(lambda: target.copy_(source), device)
    memory = torch.ones(BYTES, dtype=torch.int8)
    return BYTES / 1e9 / min(read_loops()(memory, threads, which) for which in range(3) for _ in range(3))


def int8_operations(device: str = "cpu") -> float:
    """Returns the speed of `torch._int_mm` on a large product, in GOP/s: a multiplication and a sum are two."""
    left = torch.randint(-127, 128, (1024, 4096), dtype=torch.int8, device=device)
    right = torch.randint(-127, 128, (4096, 4096), dtype=torch.int8, device=device).T
    return 2 * 1024 * 4096 * 4096 / 1e9 / fastest(lambda: torch._int_mm(left, right), device)


def bf16_operations(device: str = "cpu") -> float:
    """Returns the speed of a large bf16 product, in GFLOP/s."""
    left = torch.randn(1024, 4096, dtype=torch.bfloat16, device=device)
    right = torch.randn(4096, 4096, dtype=torch.bfloat16, device=device)
    return 2 * 1024 * 4096 * 4096 / 1e9 / fastest(lambda: torch.nn.functional.linear(left, right), device)


def fastest(call: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Returns the least seconds of some calls, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
