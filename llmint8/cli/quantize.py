"""`llmint8 quantize`: a 16-bit checkpoint becomes an int8 checkpoint, tensor by tensor."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from llmint8.cli.errors import one_line_errors

Progress = Callable[[str, int, int], None]


class Mode(StrEnum):
    """How outlier columns are chosen."""

    budget = "budget"
    threshold = "threshold"
    none = "none"


class Format(StrEnum):
    """Tensor names and configuration of the checkpoint."""

    llmint8 = "llmint8"
    bitsandbytes = "bitsandbytes"


def quantize(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub.")],
    output: Annotated[str, typer.Argument(help="Folder to write, new or empty.")],
    mode: Annotated[Mode | None, typer.Option(help="How outlier columns are chosen.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Most outlier columns of a layer: a number, or a share such as 0.125 (default).")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Smallest score of an outlier; alone, the paper's 6.0.")] = None,
    relative: Annotated[
        bool | None, typer.Option("--relative/--absolute", help="Scores in root mean squares of a token, or as they are.")
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Activations without a zero point.")] = False,
    skip: Annotated[list[str] | None, typer.Option(help="Layers to keep as they are.")] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Layers to quantize although they are kept by default, such as lm_head.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32: of what is not int8. The model's own by default.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest size of a file.")] = "5GB",
    format: Annotated[Format, typer.Option(help="Of the checkpoint.")] = Format.llmint8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes are in bytes.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
) -> None:
    """Make an int8 checkpoint of a 16-bit one, in the memory of a few tensors.

    OUTPUT appears when it is complete. If this is stopped, the same command goes on after the files it has finished.
    """
    with one_line_errors(), _progress() as progress:
        from transformers.utils import logging

        from llmint8.config import Int8Config
        from llmint8.streaming import quantize_checkpoint

        logging.set_verbosity_error()
        config = Int8Config(
            mode=None if mode is None else mode.value,
            threshold=threshold,
            budget=None if budget is None else _number(budget),
            relative=relative,
            symmetric=symmetric,
            skip_modules=tuple(skip or ()),
            include_modules=tuple(include or ()),
            checkpoint_format=format.value,
        )
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


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--budget must be a number of columns or a share of them, got {text!r}") from error


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
