"""What the commands print on: a terminal, or plain text of a fixed width in a pipe."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_OF_PIPES = 100


def console() -> "Console":
    """Returns a console on stdout."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = _WIDTH_OF_PIPES
    return made
