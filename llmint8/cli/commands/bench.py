"""`llmint8 bench`: how fast a model is in 8 bit, and unquantized beside it."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from llmint8.cli.console import console, one_line_warnings
from llmint8.cli.settings import DtypeOption, IncludeOption, JsonOption, TrustOption

if TYPE_CHECKING:
    from llmint8.speed import Speed


def command(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub; 16-bit or int8.")],
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 256,
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 32,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 3,
    include: IncludeOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure a model in 8 bit and, if the checkpoint is not int8, unquantized, in turn: medians of some rounds."""
    with one_line_warnings():
        import torch

        from llmint8.cli.models import is_int8, load, quiet
        from llmint8.config import Int8Config
        from llmint8.speed import measure

        quiet()
        config = Int8Config(include_modules=tuple(include)) if include else None
        models = {}
        if not is_int8(model, trust_remote_code):
            unquantized = load(model, False, dtype, trust_remote_code)
            models = {str(unquantized.dtype).removeprefix("torch."): unquantized}
        models = {"8 bit": load(model, True, dtype, trust_remote_code, config), **models}
        speeds = measure(models, prompt, tokens, batch, rounds)
        where = str(next(iter(models.values())).device.type)
        threads = torch.get_num_threads()
    if as_json:
        sizes = {"prompt": prompt, "tokens": tokens, "batch": batch, "rounds": rounds}
        found = {name: dataclasses.asdict(speed) for name, speed in speeds.items()}
        typer.echo(json.dumps({**sizes, "device": where, "threads": threads, "models": found}, indent=2))
    else:
        _show(speeds, f"Prompt of {prompt} tokens, then {tokens}, batch {batch}; {where}, {threads} threads")


def _show(speeds: "dict[str, Speed]", title: str) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("median (slowest to fastest)")
    for name in speeds:
        table.add_column(name, justify="right")
    if len(speeds) == 2:
        table.add_column("ratio", justify="right")

    def add(label: str, values: list[float], texts: list[str]) -> None:
        ratio = [f"{values[0] / values[1]:.2f}x"] if len(values) == 2 else []
        table.add_row(label, *texts, *ratio)

    found = list(speeds.values())
    for label, name in (("prompt, tokens/s", "prefill"), ("generation, tokens/s", "decode")):
        texts = []
        for speed in found:
            low, high = getattr(speed, f"{name}_range")
            texts.append(f"{getattr(speed, name):.1f} ({low:.1f} to {high:.1f})")
        add(label, [getattr(speed, name) for speed in found], texts)
    seconds = [speed.first_token for speed in found]
    add("first token, ms", seconds, [f"{value * 1e3:.0f}" for value in seconds])
    sizes = [float(speed.weight_bytes) for speed in found]
    add("weights, MB", sizes, [f"{value / 1e6:.0f}" for value in sizes])
    console().print(table)
