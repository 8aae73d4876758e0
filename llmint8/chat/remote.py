"""A model behind a server that speaks OpenAI's API: `llmint8 serve`, `transformers serve`, vLLM and others."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

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
        start = time.perf_counter()
        # A client for each answer: a stream is closed with its client.
        with InferenceClient(base_url=f"{self._address}/v1", api_key=self._key) as client:
            try:
                chunks: Any = client.chat_completion(
                    list(messages),
                    model=self.name,
                    stream=True,
                    stream_options={"include_usage": True},  # type: ignore[arg-type]
                    **options,
                )
                for chunk in chunks:
                    if chunk.usage is not None:
                        statistics.prompt_tokens = chunk.usage.prompt_tokens
                        statistics.tokens = chunk.usage.completion_tokens
                    if not chunk.choices:
                        continue
                    statistics.truncated = chunk.choices[0].finish_reason == "length"
                    if piece := chunk.choices[0].delta.content:
                        statistics.seconds = time.perf_counter() - start
                        statistics.first = statistics.first or statistics.seconds
                        statistics.tokens += 1  # about, until the server says
                        yield piece
            except HfHubHTTPError as error:
                raise ValueError(_message(error)) from error

    def memory(self) -> int | None:
        """Returns the bytes of the weights, which a server of ours says."""
        info = self._optional("/info") if self._is_ours else None
        return None if info is None else info.get("weights_bytes")

    def _get(self, path: str) -> dict[str, Any]:
        session, headers = get_session(), {"Authorization": f"Bearer {self._key}"}
        try:
            response = session.get(self._address + path, headers=headers, timeout=_SECONDS)
        except Exception as error:  # of the HTTP library that huggingface_hub uses
            raise ConnectionError(f"{self._address} does not answer: {error}") from error
        if response.status_code != 200:
            raise ValueError(f"{self._address}{path}: status {response.status_code}; {_text(response)}")
        found = response.json()
        if not isinstance(found, dict):
            raise ValueError(f"{self._address}{path} is not what OpenAI's API answers")
        return found

    def _optional(self, path: str) -> dict[str, Any] | None:
        try:
            return self._get(path)
        except ValueError:
            return None


def _message(error: HfHubHTTPError) -> str:
    return str(error) if error.response is None else f"the server says: {_text(error.response)}"


def _text(response: Any) -> str:
    """The message of an error object, or what there is instead."""
    try:
        return str(response.json()["error"]["message"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"status {response.status_code}"
