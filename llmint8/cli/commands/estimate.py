"""`llmint8 estimate`: how much memory a model takes, before it is loaded."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from llmint8.cli.console import console

if TYPE_CHECKING:
    from rich.table import Table

    from llmint8.estimation import Estimate

# Of what is not quantized, parts with a hundredth of the weights or more are named.
_LEAST_SHARE = 0.01
_MOST_PARTS = 6
_GIB = 1 << 30


class Device(StrEnum):
    """Where a model is to run."""

    cuda = "cuda"
    cpu = "cpu"


def command(
    model: Annotated[str, typer.Argument(help="A folder, a config.json, or a name on the Hugging Face hub.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens of a sequence; 4096, or what the model was made for, by default.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32: of what is not int8. The model's own by default.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where it is to run.")] = Device.cuda,
    include: Annotated[
        list[str] | None, typer.Option(help="Layers to quantize although they are kept by default, such as lm_head.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Layers to keep as they are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes are in bytes.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
) -> None:
    """Tell how much memory a model takes in 8 bit and unquantized, and which GPUs it fits. Nothing is loaded."""
    from transformers.utils import logging

    from llmint8.config import Int8Config
    from llmint8.estimation import estimate

    logging.set_verbosity_error()
    settings = Int8Config(include_modules=tuple(include or ()), skip_modules=tuple(skip or ()))
    result = estimate(
        model,
        settings if include or skip else None,
        context=context,
        batch=batch,
        dtype=dtype,
        device=device.value,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)


def _show(result: "Estimate") -> None:
    output = console()
    output.print(
        f"{result.architecture}, {result.parameters / 1e9:.2f} billion parameters, {result.dtype}; "
        f"context {result.context}, batch {result.batch}, {result.device}",
        markup=False,
    )
    output.print(_memory(result))
    output.print(_cards(result))
    for note in result.notes:
        output.print(f"- {note}", markup=False)


def _memory(result: "Estimate") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    both = (result.int8, result.unquantized)
    table = Table(box=box.SIMPLE_HEAD, title="Memory in GiB", title_justify="left")
    table.add_column("", overflow="fold")
    table.add_column("8 bit", justify="right")
    table.add_column(result.dtype, justify="right")

    def add(label: str, sizes: "list[int | None]", style: str = "") -> None:
        table.add_row(Text(label), *(_gibibytes(size) for size in sizes), style=style)

    add("int8 weights", [f.weights.int8 for f in both])
    add("their scales", [f.weights.scales for f in both])
    add("not quantized", [f.weights.unquantized for f in both])
    for name, dtype, size, other in _largest_parts(result):
        add(f"  {name}" + (f" ({dtype})" if dtype != result.dtype else ""), [size, other], "dim")
    add("weights", [f.weights.total for f in both], "bold")
    add("KV cache", [f.kv_cache for f in both])
    add("workspace", [f.workspace for f in both])
    add("peak of a run", [f.total for f in both], "bold")
    add("peak of loading", [f.loading for f in both])
    return table


def _largest_parts(result: "Estimate") -> list[tuple[str, str, int, int]]:
    """The largest parts that stay as they are in 8 bit, then the rest: name, dtype, bytes in 8 bit and unquantized."""
    least = result.int8.weights.total * _LEAST_SHARE
    unquantized = {(part.name, part.dtype): part.bytes for part in result.unquantized.weights.kept}
    large: list[tuple[str, str, int, int]] = []
    small: list[tuple[str, str, int, int]] = []
    for part in result.int8.weights.kept:
        row = (part.name, part.dtype, part.bytes, unquantized.get((part.name, part.dtype), 0))
        (large if part.bytes >= least and len(large) < _MOST_PARTS else small).append(row)
    if small:
        large.append((f"{len(small)} smaller ones", result.dtype, sum(p[2] for p in small), sum(p[3] for p in small)))
    return large


def _cards(result: "Estimate") -> "Table":
    from rich import box
    from rich.table import Table

    title = f"GPUs that it fits, and the longest context with batch {result.batch}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("GPU", "usable GiB", "8 bit", "longest", result.dtype, "longest"):
        table.add_column(heading, justify="left" if heading == "GPU" else "right")
    for fit in result.cards:
        size = "" if f"{fit.card.gigabytes} GB" in fit.card.name else f" {fit.card.gigabytes} GB"
        table.add_row(
            f"{fit.card.name}{size}",
            f"{fit.card.usable / _GIB:.1f}",
            *_fit(fit.int8, fit.int8_context),
            *_fit(fit.unquantized, fit.unquantized_context),
        )
    return table


def _fit(fits: bool, longest: int | None) -> tuple[str, str]:
    return "yes" if fits else "no", "?" if longest is None else str(longest) if longest else "-"


def _gibibytes(size: int | None) -> str:
    if size is None:
        return "?"
    if size == 0:
        return "-"
    digits = 2 if size >= _GIB else 3
    return f"{size / _GIB:.{digits}f}" if size >= _GIB / 2000 else "< 0.001"
