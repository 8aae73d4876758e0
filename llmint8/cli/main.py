"""The command `llmint8`. Its help is there at once: nothing here imports torch or transformers."""

from typing import Annotated

import typer

from llmint8._version import __version__
from llmint8.cli.bench import bench
from llmint8.cli.chat import chat
from llmint8.cli.doctor import doctor
from llmint8.cli.estimate import estimate
from llmint8.cli.eval import evaluate
from llmint8.cli.inspect import inspect
from llmint8.cli.quantize import quantize
from llmint8.cli.serve import serve

# Help in plain text takes half the time.
app = typer.Typer(
    name="llmint8",
    help="LLM.int8() for Hugging Face transformers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(chat)
app.command()(serve)
app.command()(quantize)
app.command()(estimate)
app.command()(inspect)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(doctor)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"llmint8 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """LLM.int8() for Hugging Face transformers."""


def main() -> None:
    """Runs the command."""
    app()
