"""A model behind a server that speaks OpenAI's API: `llmint8 serve`, `transformers serve`, vLLM and others."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from llmint8.chat.source import Message, Sampling, Statistics

_SECONDS = 10  # to answer what needs no model


class Remote:
    """A server; see `Source`."""

    def __init__(self, address: str, model: str | None = None, api_key: str | None = None) -> None:
        """Asks the server which model it has.

        Args:
            address: As http://127.0.0.1:8000, with or without /v1.
            model: Which of its models; the first one if None.
            api_key: Key, if it wants one.

        Raises:
            OSError: There is no such server.
            ValueError: It refuses the key, or has no model.
        """
        self._address = address.rstrip("/").removesuffix("/v1")
        self._key = api_key or "none"
        self.context: int | None = None
        models = self._get("/v1/models").get("data") or []
        if model is None and not models:
            raise ValueError(f"{self._address} lists no model; say which one with --model")
        self.name = model or models[0]["id"]
        self._is_ours = self._optional("/info") is not None

    def stream(self, messages: Sequence[Message], sampling: Sampling, statistics: Statistics) -> Iterator[str]:
        """Yields the pieces of an answer; see `Source`. Closing the iterator closes the connection."""
        options = {name: value for name, value in vars(sampling).items() if value is not None}
        body = {"model": self.name, "messages": list(messages), "stream": True, **options}
        start = time.perf_counter()
        try:
            with self._open("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}) as response:
                for chunk in _events(response):
                    if usage := chunk.get("usage"):
                        statistics.prompt_tokens = usage["prompt_tokens"]
                        statistics.tokens = usage["completion_tokens"]
                    if not chunk.get("choices"):
                        continue
                    choice = chunk["choices"][0]
                    statistics.truncated = choice.get("finish_reason") == "length"
                    if piece := choice["delta"].get("content"):
                        statistics.seconds = time.perf_counter() - start
                        statistics.first = statistics.first or statistics.seconds
                        statistics.tokens += 1  # about, until the server says
                        yield piece
        except (http.client.HTTPException, KeyError, TypeError) as error:
            raise ConnectionError(f"{self._address} broke off the answer: {error!r}") from error

    def memory(self) -> int | None:
        """Returns the bytes of the weights, which a server of ours says."""
        info = self._optional("/info") if self._is_ours else None
        return None if info is None else info.get("weights_bytes")

    def _open(self, path: str, body: dict[str, Any] | None = None, seconds: float | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, headers)
        try:
            return urllib.request.urlopen(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            raise ValueError(f"the server says: {_message(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{self._address} does not answer: {error}") from error

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with self._open(path, seconds=_SECONDS) as response:
                found = json.load(response)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{self._address} broke off its answer: {error!r}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{self._address}{path} is not what OpenAI's API answers") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self._address}{path} is not what OpenAI's API answers")
        return found

    def _optional(self, path: str) -> dict[str, Any] | None:
        try:
            return self._get(path)
        except (OSError, ValueError):
            return None


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    for line in response:
        kind, _, data = line.decode().strip().partition(":")
        if kind != "data":
            continue
        if data.strip() == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise ValueError(f"the server says: {event['error'].get('message', event['error'])}")
        yield event


def _message(error: urllib.error.HTTPError) -> str:
    """The message of an error object, or what there is instead."""
    try:
        return str(json.load(error)["error"]["message"])
    except (KeyError, TypeError, ValueError):
        return f"{error.code} {error.reason}"
