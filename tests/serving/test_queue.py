"""Places, those who wait for one, and those who hang up."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

KEY = "a secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}
STORY = {"prompt": "Once upon a time", "max_tokens": 1000, "temperature": 0, "logit_bias": {"2": -100, "0": -100}}


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def streaming(server: Any) -> Iterator[Iterator[str]]:
    """A stream that has begun; leaving it hangs up."""
    body = {**STORY, "stream": True}
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{server.url}/completions", json=body, headers=HEADERS) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        yield lines


def test_hanging_up_frees_the_place(make_server: Callable[..., Any]) -> None:
    server = make_server(slots=1)
    engine = server.app.state.engine
    with streaming(server):
        assert engine.running == 1
    until(lambda: engine.running == 0)
    with pytest.raises(httpx.ReadTimeout):  # neither does one who waits for a whole answer keep it
        httpx.post(f"{server.url}/completions", json=STORY, headers=HEADERS, timeout=httpx.Timeout(60, read=0.5))
    until(lambda: engine.running == 0)
    lines = [f'llmint8_requests_total{{path="/v1/completions",status="{status}"}} 1.0' for status in (200, 499)]
    metrics = f"{server.url.removesuffix('/v1')}/metrics"  # the stream had begun
    until(lambda: all(line in httpx.get(metrics, headers=HEADERS).text for line in lines))
    start = time.monotonic()
    assert httpx.post(f"{server.url}/completions", json={**STORY, "max_tokens": 2}, headers=HEADERS).status_code == 200
    assert time.monotonic() - start < 5


def test_a_full_queue_is_429_and_one_who_hangs_up_leaves_it(make_server: Callable[..., Any]) -> None:
    server = make_server(slots=1, max_queue=1)
    engine = server.app.state.engine
    waited: list[Any] = []

    def wait() -> None:
        waited.append(
            httpx.post(f"{server.url}/completions", json={**STORY, "max_tokens": 2}, headers=HEADERS, timeout=60)
        )

    with streaming(server):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/completions", json=STORY, headers=HEADERS, timeout=httpx.Timeout(60, read=0.3))
        until(lambda: engine.waiting == 0)
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: engine.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            server.client.completions.create(model="SmolLM2-135M-Instruct", prompt="Hi")
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body["code"] == "queue_full"
        assert httpx.get(f"{server.url}/models", headers=HEADERS).status_code == 200
    thread.join(30)
    assert waited[0].status_code == 200


def test_a_server_that_stops_takes_no_more(make_server: Callable[..., Any]) -> None:
    server = make_server()
    server.app.state.lifecycle.stopping = True
    response = httpx.post(f"{server.url}/completions", json=STORY, headers=HEADERS)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "stopping"
    server.app.state.lifecycle.stopping = False
    server.app.state.engine.close()
    response = httpx.post(f"{server.url}/completions", json=STORY, headers=HEADERS)
    assert response.status_code == 503
    assert httpx.get(server.url.replace("/v1", "/health")).status_code == 503


def test_what_is_far_too_long_is_not_tokenized(
    make_server: Callable[..., Any], manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(max_prompt_tokens=10)
    monkeypatch.setattr(type(manager.tokenizer), "__call__", None)
    chat = {"messages": [{"role": "user", "content": "x" * 811}]}
    for path, body in (("completions", {"prompt": "x" * 811}), ("chat/completions", chat)):
        response = httpx.post(f"{server.url}/{path}", json=body, headers=HEADERS)
        assert response.status_code == 400
        assert "characters, more than 10 tokens can be" in response.json()["error"]["message"]
        assert response.json()["error"]["code"] == "context_length_exceeded"
