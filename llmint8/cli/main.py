"""The command `llmint8`. Its help is there at once: nothing here imports torch or transformers."""

import importlib
import pkgutil
from typing import Annotated

import typer

from llmint8._version import __version__
from llmint8.cli import commands
from llmint8.cli.errors import DEBUG_VARIABLE, one_line_errors


def make_app() -> typer.Typer:
    """Returns the command with a subcommand for each file of `commands/`."""
    # Help in plain text takes half the time.
    app = typer.Typer(
        name="llmint8",
        help="LLM.int8() for Hugging Face transformers.",
        epilog=f"{DEBUG_VARIABLE}=1 shows where an error comes from.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for file in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"{commands.__name__}.{file.name}")
        app.command(file.name)(one_line_errors(module.command))
    app.callback()(_options)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"llmint8 {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """LLM.int8() for Hugging Face transformers."""


def main() -> None:
    """Runs the command."""
    make_app()()
