"""`llmint8.chat.remote`, a client of the server."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from llmint8.chat.remote import Remote
from llmint8.chat.source import Sampling, Statistics

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
KEY = "a secret"


def test_an_answer_and_what_is_known_of_it(server: Any) -> None:
    remote = Remote(server.url, api_key=KEY)
    assert remote.name == "SmolLM2-135M-Instruct"
    statistics = Statistics()
    pieces = list(remote.stream(QUESTION, Sampling(temperature=0), statistics))
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 2
    assert (statistics.prompt_tokens, statistics.tokens) == (37, 8)
    assert 0 < statistics.first < statistics.seconds
    assert not statistics.truncated
    list(remote.stream(QUESTION, Sampling(temperature=0, max_tokens=2), statistics := Statistics()))
    assert statistics.truncated
    assert 1e8 < (remote.memory() or 0) < 2e8


def test_a_closed_answer_stops_on_the_server(make_server: Callable[..., Any]) -> None:
    server = make_server()
    stream = Remote(server.url.removesuffix("/v1"), api_key=KEY).stream(
        [{"role": "user", "content": "Tell me a very long story."}], Sampling(temperature=0), Statistics()
    )
    next(stream)
    assert server.app.state.engine.running == 1
    stream.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if not server.app.state.engine.running:
            break
        time.sleep(0.05)
    assert server.app.state.engine.running == 0


def test_what_the_server_refuses(server: Any) -> None:
    with pytest.raises(ValueError, match="wrong API key"):
        Remote(server.url, api_key="wrong")
    remote = Remote(server.url, api_key=KEY)
    with pytest.raises(ValueError, match="the prompt has .* tokens"):
        list(remote.stream([{"role": "user", "content": "word " * 400}], Sampling(), Statistics()))
    with pytest.raises(ValueError, match="there is no model 'other'"):
        list(Remote(server.url, "other", KEY).stream(QUESTION, Sampling(), Statistics()))
