"""`llmint8 eval`: what 8 bit costs in accuracy."""

import json
import math
from typing import Annotated, Any

import typer

from llmint8.cli.console import console, one_line_warnings
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

# Keys of the JSON -> how they are printed.
_ROWS = {
    "tokens": ("tokens predicted", "{:d}"),
    "perplexity": ("perplexity in 8 bit", "{:.3f}"),
    "reference_perplexity": ("perplexity of the reference", "{:.3f}"),
    "kl": ("KL divergence, nats per token", "{:.5f}"),
    "kl_standard_error": ("  its standard error", "{:.5f}"),
    "top1_agreement": ("same most likely token", "{:.1%}"),
}


def command(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub; 16-bit or int8.")],
    reference: Annotated[
        str | None, typer.Option(help="The unquantized model, or 'none' for perplexity alone. MODEL itself by default.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="A text file in UTF-8; Python's language reference by default.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are read.")] = 2048,
    window: Annotated[int, typer.Option(help="Tokens that the models read at once.")] = 512,
    mode: ModeOption = None,
    budget: BudgetOption = None,
    threshold: ThresholdOption = None,
    relative: RelativeOption = None,
    symmetric: SymmetricOption = False,
    skip: SkipOption = None,
    include: IncludeOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Compare a model in 8 bit with the unquantized one on a text: perplexity, KL divergence, top-1 agreement."""
    with one_line_warnings():
        from llmint8.analysis import compare, perplexity
        from llmint8.cli.models import is_int8, load, quiet, windows_of

        quiet()
        given = (mode, budget, threshold, relative, symmetric or None, skip, include)
        changed = any(value is not None for value in given)
        config = settings(mode, budget, threshold, relative, symmetric, skip, include) if changed else None
        if reference is None:
            if is_int8(model, trust_remote_code):
                raise ValueError(
                    f"{model} is int8 already: say what to compare it with (--reference MODEL), or --reference none"
                )
            reference = model
        windows = windows_of(model, text, window, tokens, trust_remote_code)
        other = None
        if reference != "none":
            if is_int8(reference, trust_remote_code):
                raise ValueError(f"the reference {reference} is int8; give the unquantized model")
            other = load(reference, False, dtype, trust_remote_code)
        quantized = load(model, True, dtype, trust_remote_code, config)
        found: dict[str, Any]
        if other is None:
            value, count = perplexity(quantized, windows)
            found = {"tokens": count, "perplexity": value}
        else:
            result = compare(quantized, other, windows)
            found = {name: getattr(result, name) for name in _ROWS}
    found = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in found.items()}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in found.items():
        if value is not None:
            label, shape = _ROWS[name]
            table.add_row(label, shape.format(value))
    console().print(table)
