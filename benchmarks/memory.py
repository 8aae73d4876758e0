"""The memory of loading a model with every system, and what it takes afterwards."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from compare import Plan, compare
from harness import tables
from harness.process import systems
from harness.results import Run, show

from llmint8.kernels.cpu import native

SYSTEMS = "llmint8,llmint8_saved,transformers_bf16,bitsandbytes,torchao_weight_only,optimum_quanto,llama_cpp"


def main(
    models: Annotated[str, typer.Option(help="Names or folders of 16-bit checkpoints.")] = "1.1b",
    only: Annotated[str, typer.Option(help="Adapters in systems/.")] = SYSTEMS,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 3,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = torch.get_num_threads(),
    device: Annotated[str, typer.Option(help="cpu, or a GPU as torch names it.")] = "cpu",
    limit: Annotated[float, typer.Option(help="Seconds that loading may take.")] = 600,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Loads the same checkpoint with every system, each in a process of its own, the files in the page cache."""
    try:
        chosen = systems(only)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    native.load()  # compiled once, which is not the time of loading a model
    torch.set_num_threads(threads)
    run = Run("memory", device, threads)
    compare(run, models.split(","), chosen, rounds, Plan(device, threads, limit))
    run.save(output)
    for name, figures in tables.by_model(run.rows).items():
        show(name, tables.memory(figures))


if __name__ == "__main__":
    typer.run(main)
