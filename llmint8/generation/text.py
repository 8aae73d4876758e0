"""From tokens to the text that a client gets: decoded as it comes, and cut at a stop sequence."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_TOKENS_BEFORE = 8


class TextStream:
    """The text of an answer. What may be the beginning of a stop sequence is held back until it is known not to be."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        """Starts with no text.

        Args:
            tokenizer: A fast one of transformers.
            stop: Strings that end the answer and are not part of it.
            before: Tokens of a text that the answer goes on with: some tokenizers take a space off the first.
        """
        self._tokenizer = tokenizer._tokenizer
        before = list(before[-_TOKENS_BEFORE:])
        if self._tokenizer.decode(before, skip_special_tokens=True).endswith("\ufffd"):
            before = []  # it would wait for the rest of a character, and give it all
        self._decoder = DecodeStream(before, skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Returns the text that is certain once a token has been added; sets `stopped` at a stop sequence.

        Args:
            token: The next of the answer.
        """
        self._held += self._decoder.step(self._tokenizer, token) or ""
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        end = len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[:end], self._held[end:]
        return text

    def finish(self) -> str:
        """Returns what was held back: the answer is over."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text that a stop sequence begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
