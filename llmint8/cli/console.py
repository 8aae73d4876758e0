"""What the commands print on: a terminal, or plain text of a fixed width in a pipe."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_OF_PIPES = 100


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Shows warnings as a line on stderr, without the place in the code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        typer.echo(f"llmint8: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def console() -> "Console":
    """Returns a console on stdout."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = _WIDTH_OF_PIPES
    return made
