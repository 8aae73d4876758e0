"""What a user did wrong, in one line and without a traceback."""

import contextlib
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors about arguments and files into a line on stderr and exit status 2.

    Raises:
        typer.Exit: Instead of an OSError, ValueError or TypeError.
    """
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        typer.echo(f"llmint8: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
