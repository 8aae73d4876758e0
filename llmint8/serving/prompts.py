"""Texts become tokens: no more of them than have a place in the queue, few at a time, and none that is far too long."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from llmint8.generation.answer import ClosedError, QueueFullError
from llmint8.generation.engine import Engine
from llmint8.serving.errors import APIError, stopping

_AT_A_TIME = 2
# Parts of tokenizers that leave no character of a text out.
_NORMALIZERS = {"Sequence", "Prepend", "Replace"}  # "Replace" only with what is no shorter
_PRE_TOKENIZERS = {"Sequence", "ByteLevel", "Metaspace", "Digits", "Split"}


class Prompts:
    """Makes prompts of requests, of all kinds of completions of one server."""

    def __init__(self, engine: Engine) -> None:
        """Nothing is read yet.

        Args:
            engine: Whose queue the prompts are for.
        """
        self._engine = engine
        self._reading = 0
        self._places = asyncio.Semaphore(_AT_A_TIME)

    async def read(self, tokenize: Callable[[], list[int]]) -> list[int]:
        """Returns a prompt, made in another thread.

        Args:
            tokenize: Makes it.

        Raises:
            APIError: 429 or 503; the queue takes no request.
        """
        with refusals(self._engine):
            self._engine.check_room(self._reading)
        self._reading += 1
        try:
            async with self._places:
                return await asyncio.to_thread(tokenize)
        finally:
            self._reading -= 1


@contextlib.contextmanager
def refusals(engine: Engine) -> Iterator[None]:
    """Makes errors of the engine those of a client.

    Args:
        engine: Whose limits are told.

    Raises:
        APIError: 429 or 503; the queue takes no request.
    """
    try:
        yield
    except QueueFullError as error:
        message = f"{engine.max_queue} requests wait already; try again later"
        raise APIError(429, message, code="queue_full", retry_after=1) from error
    except ClosedError as error:
        raise stopping() from error


def most_characters(tokenizer: Any) -> int | None:
    """Returns the most characters that a token stands for, or None if there is no such limit.

    Args:
        tokenizer: A fast one of transformers.
    """
    parts = json.loads(tokenizer._tokenizer.to_str())
    model, before = parts["model"], _kinds(parts["pre_tokenizer"])
    whole = model.get("byte_fallback") or any(part["type"] == "ByteLevel" for part in before)
    if (
        model["type"] != "BPE"
        or not whole  # else any run of unknown characters may be one token
        or any(part["type"] not in _NORMALIZERS or _shortens(part) for part in _kinds(parts["normalizer"]))
        or any(part["type"] not in _PRE_TOKENIZERS or part.get("behavior") == "Removed" for part in before)
        or any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"])
    ):
        return None
    return max(map(len, tokenizer.get_vocab()))


def _kinds(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer that is a sequence, or itself."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or []
    return [part, *(found for each in inner for found in _kinds(each))]


def _shortens(part: dict[str, Any]) -> bool:
    """Whether a normalizer replaces something with something shorter, as far as is known."""
    return part["type"] == "Replace" and len(part["content"]) < len(part["pattern"].get("String", " " * 100))
