"""`llmint8 inspect`: where the outlier features of a model are."""

import json
from typing import Annotated

import typer

from llmint8.cli.console import console, one_line_warnings
from llmint8.cli.settings import DtypeOption, JsonOption, TrustOption


def command(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face hub.")],
    text: Annotated[
        str | None, typer.Option(help="A text file in UTF-8; Python's language reference by default.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are read.")] = 1024,
    window: Annotated[int, typer.Option(help="Tokens that the model reads at once.")] = 256,
    threshold: Annotated[float, typer.Option(help="Smallest magnitude of an outlier.")] = 6.0,
    relative: Annotated[
        bool, typer.Option("--relative", help="Magnitudes in root mean squares of their token.")
    ] = False,
    plot: Annotated[str | None, typer.Option(help="Draw them, too: a .png or .svg file.")] = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Find the outlier features of a model, as in Table 4 of the paper, and the outliers of each kind of layer."""
    with one_line_warnings():
        from llmint8.analysis import outlier_report, plot_outliers
        from llmint8.analysis.plots import checked_path
        from llmint8.cli.models import is_int8, load, quiet, require, windows_of

        quiet()
        if plot is not None:
            require("matplotlib", "analysis", "--plot")
            checked_path(plot)
        int8 = is_int8(model, trust_remote_code)
        windows = windows_of(model, text, window, tokens, trust_remote_code)
        loaded = load(model, int8, dtype, trust_remote_code, causal=False)
        report = outlier_report(loaded, windows, threshold, relative)
        if plot is not None:
            plot_outliers(report, plot)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return
    console().print(report)
    if plot is not None:
        typer.echo(f"wrote {plot}")
