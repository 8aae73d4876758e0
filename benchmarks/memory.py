"""The memory of loading a model with every system, and what it takes afterwards."""

import torch
import typer
from compare import Plan, compare
from harness import options, tables
from harness.process import systems
from harness.results import Run, show

from llmint8.kernels.cpu import native

SYSTEMS = "llmint8,llmint8_saved,transformers_bf16,bitsandbytes,torchao_weight_only,optimum_quanto,llama_cpp"


def main(
    models: options.Models = "1.1b",
    only: options.Only = SYSTEMS,
    rounds: options.Rounds = 3,
    threads: options.Threads = options.THREADS,
    device: options.Device = "cpu",
    limit: options.Limit = 600,
    output: options.Output = None,
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
