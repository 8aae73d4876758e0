"""Which errors are for the user, who reads one line, and which are faults of ours, which need a traceback.

An error is for the user if it is about a file or a connection (`OSError`, or a file that is no text or no JSON), if
memory ran out, or if it was written to be read: by a `raise` statement in this package, or in one of the libraries that
find a model and load it. What the interpreter or another library raises, as a `KeyError` or "unsupported operand", was
not meant for a user.
"""

import dis
import functools
import os
import traceback
from collections.abc import Callable
from json import JSONDecodeError
from types import TracebackType

import typer

# Set to 1, it shows where an error for the user comes from, too.
DEBUG_VARIABLE = "LLMINT8_DEBUG"

# The last one is code that comes with a model.
_WRITTEN_FOR_USERS = frozenset({"llmint8", "transformers", "huggingface_hub", "accelerate", "transformers_modules"})
_RAISE = dis.opmap["RAISE_VARARGS"]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command whose errors for the user are a line on stderr and exit status 2. Others pass."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except Exception as error:
            if not is_for_the_user(error):
                raise
            if os.environ.get(DEBUG_VARIABLE) == "1":
                traceback.print_exception(error)
            typer.echo(f"llmint8: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error

    return run


def is_for_the_user(error: Exception) -> bool:
    """Whether an error that was caught tells a user what to change."""
    if isinstance(error, (typer.Exit, typer.Abort, BrokenPipeError)):  # the end of a command, not an error
        return False
    if isinstance(error, (OSError, UnicodeError, JSONDecodeError)):
        return True
    if _is_out_of_memory(error):
        return True
    of_the_hub = type(error).__module__.startswith("huggingface_hub.")  # which checks configurations
    known = of_the_hub or isinstance(error, (ValueError, TypeError, ImportError, RuntimeError))
    return known and _is_raised_on_purpose(error.__traceback__)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or PyTorch on any device, found no memory; PyTorch is not imported for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _is_raised_on_purpose(trace: TracebackType | None) -> bool:
    """Whether the innermost place of a traceback is a `raise` statement in code that writes its errors for users."""
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in _WRITTEN_FOR_USERS and trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE
