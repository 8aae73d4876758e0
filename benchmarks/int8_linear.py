"""The operator `int8_linear` on a CPU, beside what bounds it: the speed of memory, and bare `torch._int_mm`."""

import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from table import append, show

from llmint8 import ops
from llmint8.kernels.cpu import build, native

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def read_loops() -> Callable[[torch.Tensor, int, int], float]:
    """Compiles the read loops: (memory, threads, which) -> seconds."""
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


def seconds(call: Callable[[], object]) -> float:
    """Times one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(
    k: Annotated[int, typer.Option(help="Input features.")] = 4096,
    n: Annotated[int, typer.Option(help="Output features; the weight should be larger than the caches.")] = 16384,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 11,
    instruction_set: Annotated[str, typer.Option(help="One of those that this processor has; the best if empty.")] = "",
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Compares the whole layer, outliers and bias included, with its bounds."""
    if not native.load():
        raise SystemExit("there is no compiler for the native kernels")
    if instruction_set:
        native.use_instruction_set(instruction_set)
    torch.manual_seed(0)
    weight, scale = ops.quantize_weight(torch.randn(n, k))
    float_weight, bias = torch.randn(n, k).bfloat16(), torch.randn(n).bfloat16()
    threads, read = torch.get_num_threads(), read_loops()
    rows = []
    with Console(stderr=True).status("Measuring") as status, torch.no_grad():
        for m in ROWS:
            status.update(f"{m} rows")
            x = torch.randn(m, k).bfloat16()
            codes = torch.randint(-127, 128, (m, k), dtype=torch.int8)
            calls = {
                "layer": lambda x=x: ops.int8_linear(x, weight, scale, bias),
                "int_mm": lambda codes=codes: torch._int_mm(codes, weight.T),
                "bf16": lambda x=x: torch.nn.functional.linear(x, float_weight, bias),
            }
            times: dict[str, list[float]] = {name: [] for name in [*calls, "read"]}
            for _ in range(rounds + 1):
                for name, call in calls.items():
                    times[name].append(seconds(call))
                times["read"].append(min(read(weight, threads, which) for which in range(3)))
            median = {name: statistics.median(values[1:]) for name, values in times.items()}
            gigabytes = {name: n * k / 1e9 / median[name] for name in ("layer", "read")}
            rows.append(
                {
                    "rows": m,
                    "layer, ms": f"{median['layer'] * 1e3:.2f}",
                    "weight GB/s": f"{gigabytes['layer']:.1f}",
                    "of read loop": f"{median['read'] / median['layer']:.2f}",
                    "GOP/s": f"{2 * m * n * k / 1e9 / median['layer']:.0f}",
                    "of int_mm": f"{median['int_mm'] / median['layer']:.2f}",
                    "of bf16": f"{median['bf16'] / median['layer']:.2f}",
                    "read loop GB/s": f"{gigabytes['read']:.1f}",
                }
            )
    show(f"int8_linear, K {k}, N {n}, {instruction_set or native.instruction_sets()[0]}, {threads} threads", rows)
    if output is not None:
        append(output, [{"k": k, "n": n, "isa": instruction_set, **row} for row in rows])


if __name__ == "__main__":
    typer.run(main)
