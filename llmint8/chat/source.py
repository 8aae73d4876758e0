"""What gives the answers of a chat, wherever the model runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

Message = dict[str, str]


@dataclass
class Sampling:
    """How answers are chosen; None leaves it to the model or the server.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: Smallest share of the probability that the tokens to choose from have together.
        max_tokens: Most tokens of an answer.
        seed: Seed of the random numbers of each answer.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: One is out of range.
        """
        if self.temperature is not None and not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature must be 0 to 100, got {self.temperature:g}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p:g}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be 0 to 2**63 - 1, got {self.seed}")

    def changed(self, name: str, text: str) -> "Sampling":
        """Returns a copy with one value read from a text; "none" leaves it to the model.

        Raises:
            ValueError: There is no such setting, or it has no such value.
        """
        names = [field.name for field in fields(self)]
        if name not in names:
            raise ValueError(f"there is no setting {name!r}; there are {', '.join(names)}")
        kind = int if name in ("max_tokens", "seed") else float
        try:
            value = None if text.lower() == "none" else kind(text)
        except ValueError:
            raise ValueError(f"{name} must be a number or none, got {text!r}") from None
        return Sampling(**{**vars(self), name: value})


@dataclass
class Statistics:
    """What is known of an answer when it has ended.

    Attributes:
        prompt_tokens: Tokens of the whole conversation; None if the server does not say.
        tokens: Tokens of the answer.
        first: Seconds to the first token.
        seconds: To the last one.
        truncated: Whether the answer ended because it was long enough.
    """

    prompt_tokens: int | None = None
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    truncated: bool = False

    @property
    def speed(self) -> float | None:
        """Tokens a second after the first one, or None if there are no more."""
        return (
            (self.tokens - 1) / (self.seconds - self.first) if self.tokens > 1 and self.seconds > self.first else None
        )


class Source(Protocol):
    """A model to talk to.

    Attributes:
        name: What it is called.
        context: Most tokens of a conversation, or None if nobody says.
    """

    name: str
    context: int | None

    def stream(self, messages: Sequence[Message], sampling: Sampling, statistics: Statistics) -> Iterator[str]:
        """Yields the pieces of an answer; closing the iterator ends it, and fills in the statistics in any case.

        Raises:
            ValueError: The conversation is too long, or the server refuses it.
            OSError: The server cannot be reached.
        """

    def memory(self) -> int | None:
        """Returns the bytes that the model takes now, or None if they are not known."""
