"""Whatever a client sends, the server says what was wrong with it, and lives."""

import json
import os
import socket
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmint8.serving import gate

KEY = "a secret"
MESSAGES = [{"role": "user", "content": "Hi"}]
JSON = {"content-type": "application/json"}
BEARER = {"Authorization": f"Bearer {KEY}"}


def send(server: Any, method: str = "POST", path: str = "/chat/completions", **options: Any) -> httpx.Response:
    headers = {**BEARER, **options.pop("headers", {})}
    return httpx.request(method, server.url + path, headers=headers, timeout=60, **options)


def check(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": -1}, "max_tokens: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": "many"}, "max_tokens: "),
        ({"max_tokens": 10**6}, "this server generates 200 at most"),
        ({"max_completion_tokens": True}, "max_completion_tokens: "),
        ({"temperature": -0.1}, "temperature: "),
        ({"temperature": 2.1}, "temperature: "),
        ({"top_p": 1.5}, "top_p: "),
        ({"seed": 0.5}, "seed: "),
        ({"seed": 2**70}, "seed: "),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"n": 2}, "n: "),
        ({"logprobs": True}, "logprobs: "),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"response_format": {"type": "json_object"}}, "response_format.type: "),
        ({"logit_bias": {"x": 1}}, "'x' is not a token"),
        ({"logit_bias": {"49152": 1}}, "'49152' is not a token"),
        ({"stream": "yes"}, "stream: "),
        ({"stream_options": 1}, "stream_options: "),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream"),
        ({"max_tokens": 10**1000}, f"max_tokens is 1{'0' * 19}...; this server"),
        ({"messages": []}, "messages: "),
        ({"messages": "Hi"}, "messages: "),
        ({"messages": [{"role": "user"}]}, "needs content"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "word " * 400}]}, "must have 1 to 300"),
    ],
)
def test_a_bad_field_is_named(server: Any, change: dict[str, Any], words: str) -> None:
    check(send(server, json={"messages": MESSAGES, **change}), 400, words)


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 9000, b'{"max_tokens": NaN}']
)
def test_malformed_bodies(server: Any, body: bytes) -> None:
    check(send(server, content=body, headers=JSON), 400, "")


def test_an_error_does_not_repeat_all_that_was_sent(server: Any) -> None:
    response = send(server, json={"messages": MESSAGES, "logit_bias": {"x" * 10_000: 1000}})
    check(response, 400, "logit_bias.xxxx")
    assert len(response.text) < 1000


def test_text_that_is_not_unicode(server: Any) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "\ud800"}]})
    check(send(server, content=body, headers=JSON), 400, "not Unicode")


@pytest.mark.parametrize("prompt", ["", [], ["a", "b"], [1, 2], None, {}])
def test_prompts_of_other_kinds(server: Any, prompt: Any) -> None:
    check(send(server, path="/completions", json={"prompt": prompt}), 400, "prompt")


def test_models_paths_and_methods_that_are_not_there(server: Any) -> None:
    check(send(server, json={"model": "gpt-4", "messages": MESSAGES}), 404, "no model 'gpt-4' here")
    check(send(server, path="/nothing", json={}), 404, "/v1/nothing")
    check(send(server, "GET", "/models/gpt-4"), 404, "no model 'gpt-4' here")
    check(send(server, "GET"), 405, "does not take GET")
    for path in ("/reset", "/load_model", "/docs", "/openapi.json", "/v1/responses"):  # of transformers
        url = server.url.removesuffix("/v1") + path
        assert httpx.post(url, json={}, headers=BEARER).status_code == 404


def test_the_key(server: Any) -> None:
    url = f"{server.url}/models"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": "Bearer \u00e9"}):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        response = httpx.get(url, headers=encoded)
        check(response, 401, "API key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(url, headers=BEARER).status_code == 200


def test_content_types(server: Any) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 1})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        check(send(server, content=body, headers={"content-type": kind}), 415, "application/json")
    assert send(server, content=body, headers={"content-type": "application/json; charset=utf-8"}).status_code == 200


def test_bodies_that_are_too_large(server: Any) -> None:
    check(send(server, json={"messages": [{"role": "user", "content": "x" * 10_000_000}]}), 413, "20000 bytes")

    def pieces() -> Any:
        for _ in range(100):
            yield b" " * 1000

    check(send(server, content=pieces(), headers=JSON), 413, "20000 bytes")  # without a length


def test_a_body_that_is_still_being_sent_does_not_hide_the_error(server: Any) -> None:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 3000000\r\n\r\n".encode())
        for _ in range(30):
            connection.sendall(b" " * 100_000)
            time.sleep(0.01)
        assert b"413" in connection.recv(1000).split(b"\r\n")[0]
    for expect in ("", "Expect: 100-continue\r\n"):  # it is told at once, and without being asked to go on
        start = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(f"{head}{expect}Content-Length: 3000000\r\n\r\n".encode())
            assert b"413" in connection.recv(1000).split(b"\r\n")[0]
        assert time.monotonic() - start < 2  # for which the server would listen
    with socket.create_connection((host, int(port)), timeout=10) as connection:  # told to go on, and then refused
        kind = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(f"{head}{kind}".encode())
        assert b"100" in connection.recv(1000)
        for _ in range(30):
            connection.sendall(b"%x\r\n%s\r\n" % (100_000, b" " * 100_000))
            time.sleep(0.01)
        assert b"413" in connection.recv(1000).split(b"\r\n")[0]


def test_a_body_that_does_not_come(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_SECONDS_FOR_BODY", 0.2)
    start = time.monotonic()
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 10\r\n\r\n".encode())
        assert b"408" in connection.recv(1000).split(b"\r\n")[0]
    assert time.monotonic() - start < 2


def test_what_is_not_http(server: Any) -> None:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert b"400" in connection.recv(1000)
    assert send(server, "GET", "/models").status_code == 200


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NUMBER = st.integers() | st.floats() | st.sampled_from([0, 1, 2, -1, 0.5, 1e-9, 1e308])
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "developer", "tool"]), "content": st.text(max_size=30)},
    optional={"name": _ANY, "tool_calls": _ANY},
)
_BODY = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 2]) | _ANY},
    optional={
        "messages": st.lists(_MESSAGE | _ANY, max_size=3),
        "prompt": st.text(max_size=30) | _ANY,
        "model": st.just("SmolLM2-135M-Instruct") | _ANY,
        "temperature": _NUMBER | _ANY,
        "top_p": _NUMBER | _ANY,
        "seed": _NUMBER | _ANY,
        "stop": st.text(max_size=4) | st.lists(st.text(max_size=4), max_size=5) | _ANY,
        "stream": st.booleans() | _ANY,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | _ANY,
        "frequency_penalty": _NUMBER | _ANY,
        "presence_penalty": _NUMBER | _ANY,
        "logit_bias": st.dictionaries(st.integers(-5, 50_000).map(str), _NUMBER, max_size=3) | _ANY,
        "n": _NUMBER | _ANY,
        "tools": _ANY,
        "response_format": _ANY,
        "suffix": _ANY,
        "echo": _ANY,
        "something": _ANY,
    },
)


@given(st.sampled_from(["/chat/completions", "/completions", "/models", "/%00", "/"]), _BODY | _ANY | st.binary())
@settings(
    max_examples=int(os.environ.get("LLMINT8_FUZZ", "100")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_the_servers_fault(server: Any, path: str, body: Any) -> None:
    if isinstance(body, dict) and isinstance(body.get("max_tokens"), int):
        body = {**body, "max_tokens": min(body["max_tokens"], 3)}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = send(server, path=path, content=content, headers=JSON)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.json()["error"]["message"]
    assert '"error"' not in response.text or response.status_code >= 400
