"""The operator `int8_linear` on a GPU, beside 16 bit, bare `torch._int_mm` and bitsandbytes, as shares of the ceilings.

Without a GPU it says so and measures nothing.
"""

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from harness.results import Run, show
from rich.console import Console
from torch import nn

from llmint8 import Int8Config, Int8Linear

# (N, K) of Llama-3.1-8B: queries, keys, gate and down.
SHAPES = "4096x4096,1024x4096,14336x4096,4096x14336"
ROWS = "1,4,16,32,64,128,512,2048"
MODES = {
    "llmint8": {},
    "llmint8, budget used up": {"budget": 1 / 8, "threshold": 1e-3},
    "llmint8 threshold 6": {"threshold": 6.0, "symmetric": True},
    "llmint8 static": {"mode": "static", "budget": 32},
}

Call = Callable[[], Any]


def milliseconds(call: Call, in_graph: bool) -> float:
    """Times a call with a cold second cache; in a CUDA graph, launching costs nothing."""
    from triton.testing import do_bench

    if in_graph:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        call = graph.replay
    return do_bench(call, warmup=10, rep=50, return_mode="median")


def ceilings() -> dict[str, float]:
    """Measures what the card reaches: copying in GB/s, large products in TFLOP/s and TOP/s."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    found = {"GB/s": 2 * source.numel() / 1e6 / milliseconds(lambda: target.copy_(source), False)}
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    found["TFLOP/s"] = 2 * size**3 / 1e9 / milliseconds(lambda: nn.functional.linear(a, a), False)
    b = torch.randint(-127, 128, (size, size), device="cuda", dtype=torch.int8)
    found["TOP/s"] = 2 * size**3 / 1e9 / milliseconds(lambda: torch._int_mm(b, b.T), False)
    return found


def launches_and_syncs(call: Call) -> tuple[int, int]:
    """Counts the kernels (copies and fills included) and the host's waits of one call, with PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    events = profiler.events() or []
    names = [event.name for event in events]
    on_device = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    waits = sum(name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy") for name in names)
    return on_device, waits


def systems(n: int, k: int, x: torch.Tensor) -> dict[str, Call]:
    """Makes what is compared: name -> call."""
    linear = nn.Linear(k, n, device="cuda", dtype=torch.float16)
    half = linear.to(torch.bfloat16) if x.dtype == torch.bfloat16 else linear
    calls: dict[str, Call] = {}
    for name, settings in MODES.items():
        layer = Int8Linear.from_float(half)
        layer.int8_config = Int8Config(**settings)
        layer.set_outlier_columns(torch.arange(32, device="cuda") if layer.int8_config.mode == "static" else None)
        calls[name] = lambda layer=layer: layer(x)
    calls["16 bit"] = lambda: half(x)
    m = max(x.shape[0], 17)  # torch._int_mm takes no fewer rows
    codes = torch.randint(-127, 128, (m, k), device="cuda", dtype=torch.int8)
    weight = torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8)
    calls["_int_mm alone"] = lambda: torch._int_mm(codes, weight.T)
    if importlib.util.find_spec("bitsandbytes") is not None:
        import bitsandbytes

        for threshold in (6.0, 0.0):
            theirs = bitsandbytes.nn.Linear8bitLt(k, n, has_fp16_weights=False, threshold=threshold)
            theirs.load_state_dict({name: value.cpu().half() for name, value in linear.state_dict().items()})
            theirs = theirs.to("cuda")
            calls[f"bitsandbytes {threshold:g}"] = lambda theirs=theirs: theirs(x)
    return calls


def main(
    shapes: Annotated[str, typer.Option(help="NxK of the weights.")] = SHAPES,
    rows: Annotated[str, typer.Option(help="Numbers of rows.")] = ROWS,
    dtype: Annotated[str, typer.Option(help="Of the input: float16 or bfloat16.")] = "float16",
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 3,
    graph: Annotated[bool, typer.Option(help="All but bitsandbytes in a CUDA graph: launching is free.")] = False,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Compares whole layers, outliers and bias included."""
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured")
        return
    device, limit, table = torch.cuda.get_device_name(), ceilings(), []
    run = Run("int8_linear_gpu", "cuda")
    for unit, value in limit.items():
        run.add("limit", unit, value, unit)
    with Console(stderr=True).status("Measuring") as status, torch.no_grad():
        for n, k in (map(int, shape.split("x")) for shape in shapes.split(",")):
            for m in map(int, rows.split(",")):
                status.update(f"{m} rows, {n}x{k}")
                x = torch.randn(m, k, device="cuda").to(getattr(torch, dtype))
                x[:, :: max(1, k // 6)] *= 20  # six outlier columns
                calls = systems(n, k, x)
                counts = {name: launches_and_syncs(call) for name, call in calls.items()}
                times: dict[str, list[float]] = {name: [] for name in calls}
                for _ in range(rounds):
                    for name, call in calls.items():
                        in_graph = graph and "bitsandbytes" not in name  # which waits, and cannot be captured
                        times[name].append(milliseconds(call, in_graph))
                setting = f"rows={m} dtype={dtype} graph={graph}"
                for name, values in times.items():
                    for repeat, ms in enumerate(values, start=1):
                        run.add(name, "layer", ms / 1e3, "s", model=f"{n}x{k}", setting=setting, repeat=repeat)
                median = {name: statistics.median(values) for name, values in times.items()}
                for name, ms in median.items():
                    width = 2 if name == "16 bit" else 1
                    peak = limit["TFLOP/s"] if name == "16 bit" else limit["TOP/s"]
                    table.append(
                        {
                            "N x K": f"{n}x{k}",
                            "rows": m,
                            "system": name,
                            "us": f"{ms * 1e3:.1f}",
                            "of 16 bit": f"{median['16 bit'] / ms:.2f}",
                            "weight GB/s": f"{width * n * k / 1e6 / ms:.0f}",
                            "of copy": f"{width * n * k / 1e6 / ms / limit['GB/s']:.2f}",
                            "TOP/s": f"{2 * m * n * k / 1e9 / ms:.1f}",
                            "of matmul": f"{2 * m * n * k / 1e9 / ms / peak:.2f}",
                            "launches": counts[name][0],
                            "syncs": counts[name][1],
                        }
                    )
    ceiling = ", ".join(f"{value:.0f} {unit}" for unit, value in limit.items())
    show(f"int8_linear, {device}, {dtype}{', CUDA graph' if graph else ''}; ceilings {ceiling}", table)
    run.save(output)


if __name__ == "__main__":
    typer.run(main)
