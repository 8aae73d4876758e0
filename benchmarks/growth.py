"""How cost grows: with the size of the model, the prompt, the batch, and the width of a layer."""

import copy
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import torch
import typer
from compare import DECODE_SECONDS, Plan
from harness import ceiling, options
from harness.models import SIZES, checkpoint
from harness.process import BenchmarkError, Process, systems
from harness.results import Run, show
from rich.console import Console
from torch import nn

from llmint8 import Int8Linear
from llmint8.kernels.cpu import native

SYSTEMS = "llmint8,transformers_bf16,bitsandbytes"
PROMPTS = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
STEPS = 8


def of_size(process: Process, plan: Plan) -> Iterator[tuple[str, str, float, str]]:
    """Yields figure, setting, value and unit of one model."""
    yield "weights", "", process.loaded["weights"], "B"
    yield "weights read in a step", "", process.loaded["weights read in a step"], "B"
    yield "decode", "batch=1", _decode(process, 1, plan), "tokens/s"
    process.ask("prefill", prompt=256, batch=1)
    yield "prefill", "prompt=256", 256 / process.ask("prefill", prompt=256, batch=1)["seconds"], "tokens/s"


def of_prompt(process: Process, plan: Plan, prompts: Iterable[int]) -> Iterator[tuple[str, str, float, str]]:
    """Yields the speed of prompts of several lengths."""
    process.ask("prefill", prompt=64, batch=1)
    for prompt in prompts:
        seconds = process.ask("prefill", prompt=prompt, batch=1)["seconds"]
        yield "prefill", f"prompt={prompt}", prompt / seconds, "tokens/s"


def of_batch(process: Process, plan: Plan, batches: Iterable[int]) -> Iterator[tuple[str, str, float, str]]:
    """Yields the speed of decoding several sequences together."""
    for batch in batches:
        yield "decode", f"batch={batch}", _decode(process, batch, plan), "tokens/s"


def _decode(process: Process, batch: int, plan: Plan) -> float:
    answer = process.ask("decode", prompt=16, batch=batch, tokens=STEPS, limit=DECODE_SECONDS, device=plan.device)
    return batch / statistics.median(answer["steps"][1:] or answer["steps"])


def widths(run: Run, sizes: Sequence[int], rounds: int, device: str) -> None:
    """Measures one square layer of several widths, for one row and for 256.

    Args:
        run: Gets the figures.
        sizes: Input and output features.
        rounds: Interleaved repeats.
        device: Where.
    """
    for width in sizes:
        linear = nn.Linear(width, width, dtype=torch.bfloat16, device=device)
        # Copies, as a model has layers, so that weights come from memory; the smallest ones stay in a cache even so.
        copies = min(64, max(1, (128 << 20) // (width * width)))
        systems = {
            "llmint8": [Int8Linear.from_float(linear) for _ in range(copies)],
            "transformers bf16": [copy.deepcopy(linear) for _ in range(copies)],
        }
        for rows in (1, 256):
            x = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
            for repeat in range(rounds + 1):
                for system, layers in systems.items():
                    seconds = _seconds(layers, x, device)
                    if repeat:
                        setting = f"width={width} rows={rows}"
                        run.add(system, "layer", seconds, "s", model="a layer", setting=setting, repeat=repeat)


def _seconds(layers: Sequence[nn.Module], x: torch.Tensor, device: str) -> float:
    """Of one layer."""
    with torch.no_grad():
        start = time.perf_counter()
        for layer in layers:
            layer(x)
        if device != "cpu":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / len(layers)


def main(
    sizes: Annotated[str, typer.Option(help="Models of random weights.")] = ",".join(SIZES),
    model: Annotated[str, typer.Option(help="The one that prompts and batches are measured on.")] = "1.1b",
    prompts: Annotated[str, typer.Option(help="Tokens.")] = ",".join(map(str, PROMPTS)),
    batches: Annotated[str, typer.Option(help="Sequences.")] = ",".join(map(str, BATCHES)),
    layer_widths: Annotated[str, typer.Option(help="Input and output features.")] = ",".join(map(str, WIDTHS)),
    only: options.Only = SYSTEMS,
    rounds: options.Rounds = 2,
    threads: options.Threads = options.THREADS,
    device: options.Device = "cpu",
    limit: options.Limit = 600,
    output: options.Output = None,
) -> None:
    """Measures what the figures of growth show, and the limits that are drawn in them."""
    try:
        chosen = systems(only)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    native.load()
    torch.set_num_threads(threads)
    plan, run = Plan(device, threads, limit), Run("growth", device, threads)
    with Console(stderr=True).status("") as status:
        for repeat in range(1, rounds + 1):
            for size in dict.fromkeys([*sizes.split(","), model]):
                path = checkpoint(size)
                for adapter, system in chosen.items():
                    status.update(f"Round {repeat} of {rounds}, {size}: {system.name}")
                    _limits(run, path.name, repeat, plan)
                    note: dict[str, Any] = {"model": path.name, "repeat": repeat, "versions": ""}
                    try:
                        with Process(adapter, system, path, device, threads, limit) as process:
                            note["versions"] = process.loaded["versions"]
                            for figure in of_size(process, plan):
                                _add(run, system.name, figure, note)
                            if size == model:
                                for figure in of_prompt(process, plan, _numbers(prompts)):
                                    _add(run, system.name, figure, note)
                                for figure in of_batch(process, plan, _numbers(batches)):
                                    _add(run, system.name, figure, note)
                    except BenchmarkError as error:
                        run.add(system.name, "failed", None, "", **{**note, "note": str(error)})
        status.update("Layers")
        widths(run, _numbers(layer_widths), rounds, device)
    run.save(output)
    show("Growth: medians", _medians(run))


def _add(run: Run, system: str, figure: tuple[str, str, float, str], note: dict[str, Any]) -> None:
    name, setting, value, unit = figure
    run.add(system, name, value, unit, setting=setting, **note)


def _limits(run: Run, model: str, repeat: int, plan: Plan) -> None:
    """Measures what the machine can do at this moment."""
    limits = {
        "read loop": (ceiling.read_gigabytes(plan.threads, plan.device), "GB/s"),
        "int8 product": (ceiling.int8_operations(plan.device), "GOP/s"),
        "bf16 product": (ceiling.bf16_operations(plan.device), "GOP/s"),
    }
    for name, (value, unit) in limits.items():
        run.add("limit", name, value, unit, model=model, repeat=repeat)


def _medians(run: Run) -> list[dict[str, str]]:
    values: dict[tuple[str, ...], list[float]] = {}
    for row in run.rows:
        if row.value is not None:
            values.setdefault((row.model, row.figure, row.setting, row.system, row.unit), []).append(row.value)
    names = ("model", "figure", "setting", "system")
    return [
        {**dict(zip(names, key, strict=False)), "median": f"{statistics.median(found):.4g}", "unit": key[-1]}
        for key, found in sorted(values.items())
    ]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
