"""The operator `int8_linear` on a CPU, beside what bounds it: the speed of memory, and bare `torch._int_mm`."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from harness.ceiling import read_loops
from harness.results import Run, show
from rich.console import Console

from llmint8 import ops
from llmint8.kernels.cpu import native

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


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
    isa = instruction_set or native.instruction_sets()[0]
    threads, read = torch.get_num_threads(), read_loops()
    run, rows = Run("int8_linear"), []
    with Console(stderr=True).status("Measuring") as status, torch.no_grad():
        for m in ROWS:
            status.update(f"{m} rows")
            x = torch.randn(m, k).bfloat16()
            codes = torch.randint(-127, 128, (m, k), dtype=torch.int8)
            calls = {
                "llmint8": lambda x=x: ops.int8_linear(x, weight, scale, bias),
                "torch._int_mm": lambda codes=codes: torch._int_mm(codes, weight.T),
                "bf16": lambda x=x: torch.nn.functional.linear(x, float_weight, bias),
            }
            times: dict[str, list[float]] = {name: [] for name in [*calls, "read loop"]}
            for _ in range(rounds + 1):
                for name, call in calls.items():
                    times[name].append(seconds(call))
                times["read loop"].append(min(read(weight, threads, which) for which in range(3)))
            for name, values in times.items():
                for repeat, value in enumerate(values[1:], start=1):
                    run.add(name, "layer", value, "s", model=f"{n}x{k}", setting=f"rows={m} isa={isa}", repeat=repeat)
            median = {name: statistics.median(values[1:]) for name, values in times.items()}
            gigabytes = {name: n * k / 1e9 / median[name] for name in ("llmint8", "read loop")}
            rows.append(
                {
                    "rows": m,
                    "layer, ms": f"{median['llmint8'] * 1e3:.2f}",
                    "weight GB/s": f"{gigabytes['llmint8']:.1f}",
                    "of read loop": f"{median['read loop'] / median['llmint8']:.2f}",
                    "GOP/s": f"{2 * m * n * k / 1e9 / median['llmint8']:.0f}",
                    "of int_mm": f"{median['torch._int_mm'] / median['llmint8']:.2f}",
                    "of bf16": f"{median['bf16'] / median['llmint8']:.2f}",
                    "read loop GB/s": f"{gigabytes['read loop']:.1f}",
                }
            )
    show(f"int8_linear, K {k}, N {n}, {isa}, {threads} threads", rows)
    run.save(output)


if __name__ == "__main__":
    typer.run(main)
