"""Every system on the same models, in one run: speed, and accuracy beside it."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from harness import ceiling, options, tables
from harness.models import checkpoint, has_trained_weights
from harness.process import BenchmarkError, Process, systems
from harness.results import Run, show
from harness.text import tokens_of
from rich.console import Console
from systems import System

from llmint8.kernels.cpu import native

REFERENCE = "transformers_fp32"
WINDOW = 512
DECODE_SECONDS = 4.0  # after which a slow system is not asked for more steps
SLOW_SECONDS = 5.0  # of a prompt that is not asked for again


@dataclass
class Plan:
    """What is asked of every system.

    Attributes:
        device: "cpu", or a GPU as torch names it.
        threads: Threads of the processor.
        limit: Seconds that an answer may take.
        prompt: Tokens of the prompt; nothing but loading is measured if 0.
        batches: Sequences that are decoded together.
        tokens: Steps of decoding.
        texts: Tokens of a text by model, where the weights are trained.
    """

    device: str
    threads: int
    limit: float
    prompt: int = 0
    batches: Sequence[int] = ()
    tokens: int = 0
    texts: Mapping[str, Sequence[int]] = field(default_factory=dict)


def measure(process: Process, plan: Plan, text: Sequence[int], reference: Path, write: bool) -> Iterator[tuple]:
    """Asks a loaded system for its figures.

    Yields:
        Figure, setting, value, unit and note.
    """
    loaded = process.loaded
    for figure in ("load", "load and first token"):
        yield figure, "", loaded[figure], "s", ""
    in_bytes = ("checkpoint", "weights", "before loading", "peak anonymous", "anonymous", "resident")
    for figure in (*in_bytes, "peak allocated on the GPU", "peak reserved on the GPU"):
        if figure in loaded:
            yield figure, "", loaded[figure], "B", ""
    if plan.prompt:
        yield from _speed(process, plan)
    if text:
        try:
            answer = process.ask("accuracy", tokens=text, window=WINDOW, reference=str(reference), write=write)
        except BenchmarkError as error:
            yield "KL", f"tokens={len(text)}", None, "", str(error)
            return
        for figure, value in answer.items():
            yield figure, f"tokens={len(text)}", value, "", ""


def _speed(process: Process, plan: Plan) -> Iterator[tuple]:
    setting = f"prompt={plan.prompt}"
    seconds = process.ask("prefill", prompt=plan.prompt, batch=1)["seconds"]
    if seconds < SLOW_SECONDS:  # the first one warms up
        seconds = process.ask("prefill", prompt=plan.prompt, batch=1)["seconds"]
    yield "prefill", setting, plan.prompt / seconds, "tokens/s", ""
    for batch in plan.batches:
        prompt = plan.prompt if batch == 1 else 16  # a long one would take most of the time
        setting = f"prompt={prompt} batch={batch}"
        try:
            asked = {"prompt": prompt, "batch": batch, "tokens": plan.tokens, "limit": DECODE_SECONDS}
            answer = process.ask("decode", device=plan.device, **asked)
        except BenchmarkError as error:
            yield "decode", setting, None, "tokens/s", str(error)
            continue
        step = statistics.median(answer["steps"][1:] or answer["steps"])  # the first one warms up
        yield "decode", setting, batch / step, "tokens/s", ""
        if batch == 1:
            yield "first token", setting, answer["first"], "s", ""
            yield "weights read", setting, process.loaded["weights read in a step"] / 1e9 / step, "GB/s", ""
        joules = answer["joules"]
        per_token = None if joules is None else joules / len(answer["steps"]) / batch
        yield "energy", setting, per_token, "J/token", "" if joules is not None else "not available: nothing counts it"


def compare(run: Run, models: Sequence[str], chosen: Mapping[str, System], rounds: int, plan: Plan) -> None:
    """Runs every system on every model in turn, as often as there are rounds, each in a process of its own.

    Args:
        run: Gets the figures.
        models: Names or folders.
        chosen: Systems by adapter.
        rounds: Interleaved repeats.
        plan: What is measured.
    """
    failed: set[tuple[str, str]] = set()
    with Console(stderr=True).status("") as status, tempfile.TemporaryDirectory() as folder:
        paths = {}
        for model in models:
            status.update(f"Making {model}")
            paths[model] = checkpoint(model)
            (Path(folder) / str(len(paths))).mkdir()
        for repeat in range(1, rounds + 1):
            for number, (model, path) in enumerate(paths.items(), start=1):
                text = plan.texts.get(model, []) if repeat == 1 else []
                for adapter, system in chosen.items():
                    if (model, adapter) in failed:
                        continue
                    status.update(f"Round {repeat} of {rounds}, {model}: {system.name}")
                    note: dict[str, Any] = {"model": path.name, "repeat": repeat, "versions": ""}
                    # What the machine can do at this moment: others may run on it.
                    gigabytes = ceiling.read_gigabytes(plan.threads, plan.device)
                    run.add(system.name, "read loop", gigabytes, "GB/s", **note)
                    try:
                        with Process(adapter, system, path, plan.device, plan.threads, plan.limit) as process:
                            note["versions"] = process.loaded["versions"]
                            reference = Path(folder) / str(number)
                            for figure, setting, value, unit, why in measure(
                                process, plan, text, reference, adapter == REFERENCE
                            ):
                                run.add(system.name, figure, value, unit, setting=setting, note=why, **note)
                    except BenchmarkError as error:
                        failed.add((model, adapter))
                        run.add(system.name, "failed", None, "", **{**note, "note": str(error)})


def main(
    models: options.Models = "1.1b,smollm2",
    only: options.Only = "",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 256,
    batches: Annotated[str, typer.Option(help="Sequences that are decoded together.")] = "1,8,32",
    tokens: Annotated[int, typer.Option(help="Steps of decoding.")] = 16,
    text_tokens: Annotated[int, typer.Option(help="Tokens that accuracy is measured on.")] = 1024,
    rounds: options.Rounds = 3,
    threads: options.Threads = options.THREADS,
    device: options.Device = "cpu",
    limit: options.Limit = 600,
    output: options.Output = None,
) -> None:
    """Measures the main table."""
    try:
        chosen, names = systems(only), models.split(",")
        texts = {
            name: tokens_of(checkpoint(name), None, text_tokens).tolist() for name in names if has_trained_weights(name)
        }
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    native.load()  # compiled once, which is not the time of loading a model
    torch.set_num_threads(threads)
    plan = Plan(device, threads, limit, prompt, [int(batch) for batch in batches.split(",")], tokens, texts)
    run = Run("compare", device, threads)
    compare(run, names, chosen, rounds, plan)
    run.save(output)
    for name, figures in tables.by_model(run.rows).items():
        show(f"{name}, {threads} threads (how many times as fast llmint8 is)", tables.speed(figures))


if __name__ == "__main__":
    typer.run(main)
