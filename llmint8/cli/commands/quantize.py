"""`llmint8 quantize`: a 16-bit checkpoint becomes an int8 checkpoint, tensor by tensor."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from llmint8.checkpoints.formats import FORMATS
from llmint8.cli.console import one_line_warnings
from llmint8.cli.settings import (
    BudgetOption,
    DtypeOption,
    IncludeOption,
    JsonOption,
    ModeOption,
    RelativeOption,
    SkipOption,
    SymmetricOption,
    ThresholdOption,
    TrustOption,
    settings,
)

Progress = Callable[[str, int, int], None]


# A member for each entry of the registry.
Format = StrEnum("Format", {known.name: known.name for known in FORMATS})  # type: ignore[misc]
_DEFAULT = Format("llmint8")


def command(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub.")],
    output: Annotated[str, typer.Argument(help="Folder to write, new or empty.")],
    mode: ModeOption = None,
    budget: BudgetOption = None,
    threshold: ThresholdOption = None,
    relative: RelativeOption = None,
    symmetric: SymmetricOption = False,
    skip: SkipOption = None,
    include: IncludeOption = None,
    dtype: DtypeOption = None,
    shard_size: Annotated[str, typer.Option(help="Largest size of a file.")] = "5GB",
    format: Annotated[Format, typer.Option(help="Of the checkpoint.")] = _DEFAULT,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
    as_json: JsonOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Make an int8 checkpoint of a 16-bit one, in the memory of a few tensors.

    OUTPUT appears when it is complete. If this is stopped, the same command goes on after the files it has finished.
    """
    with one_line_warnings(), _progress() as progress:
        from llmint8.cli.models import quiet
        from llmint8.streaming import quantize_checkpoint

        quiet()
        config = settings(mode, budget, threshold, relative, symmetric, skip, include, format.value)
        result = quantize_checkpoint(
            model,
            output,
            config,
            dtype=dtype,
            max_shard_size=shard_size,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if as_json:
        sizes = {"layers": result.layers, "bytes": result.bytes, "source_bytes": result.source_bytes}
        typer.echo(json.dumps({"folder": str(result.folder), **sizes}, indent=2))
    else:
        sizes_text = f"{result.bytes / 1e9:.2f} GB instead of {result.source_bytes / 1e9:.2f} GB"
        typer.echo(f"{result.folder}: {result.layers} int8 layers, {sizes_text}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A function that shows how far writing is, on stderr: a bar, or a line for each file where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        started: set[str] = set()

        def line(name: str, done: int, total: int) -> None:
            if name not in started:
                started.add(name)
                typer.echo(f"{name} ({done / 1e9:.2f} of {total / 1e9:.2f} GB)", err=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Reading", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)
