"""A request to the engine and what has become of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmint8.generation.sampling import Sampler
from llmint8.generation.text import TextStream


class QueueFullError(Exception):
    """As many requests wait as may."""


class ClosedError(Exception):
    """The engine takes no more requests: the server stops, or the engine has failed."""


@dataclass(eq=False)
class Answer:
    """A request and what has become of it.

    Attributes:
        prompt: Its tokens.
        max_tokens: Most tokens of the answer.
        end: Tokens that end an answer.
        make_sampler: Makes what chooses the tokens, in the engine's thread.
        text: Makes text of them.
        send: Called in the engine's thread with each piece of text, and with None once it is over.
        tokens: Those chosen so far, one that ended the answer among them.
        finish_reason: "stop", "length", "cancelled" or "error" once it is over.
        first: Time of the first token, of `time.perf_counter`.
        sampler: From when its prompt is read on.
        cache: As `sampler`.
        read: Tokens of the prompt that have been read.
    """

    prompt: list[int]
    max_tokens: int
    end: frozenset[int]
    make_sampler: Callable[[], Sampler]
    text: TextStream
    send: Callable[[str | None], None]
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    first: float | None = None
    sampler: Sampler | None = None
    cache: Any = None
    read: int = 0
    cancelled: bool = False

    @property
    def is_read(self) -> bool:
        """Whether all of the prompt has been read."""
        return self.read == len(self.prompt)

    @property
    def length(self) -> int:
        """Tokens in the cache between two steps: all but the newest."""
        return len(self.prompt) + len(self.tokens) - 1

    def cancel(self) -> None:
        """Ends the answer at the next step; its place is free then."""
        self.cancelled = True
