"""What a user did wrong, in one line and without a traceback."""

import contextlib
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors about arguments and files into a line on stderr and exit status 2.

    Raises:
        typer.Exit: Instead of one of the errors that libraries raise for what is wrong with a model.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, (OSError, ValueError, TypeError, ImportError, RuntimeError))
        if not known and not type(error).__module__.startswith("huggingface_hub."):  # which checks configurations
            raise
        typer.echo(f"llmint8: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
