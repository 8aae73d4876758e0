"""What becomes of requests when a server is told to stop, and told so again."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

HEADERS = {"Authorization": "Bearer a secret"}
ENDLESS = {"prompt": "Once upon a time", "max_tokens": 1000, "logit_bias": {"2": -100, "0": -100}}


@contextmanager
def connected(server: Any, head: str) -> Iterator[socket.socket]:
    """A connection that has sent the head of a request with a body."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        kind = "Content-Type: application/json\r\n"
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n{kind}{head}\r\n".encode())
        time.sleep(0.2)  # it is being read
        yield connection


def told_to_stop(server: Any) -> float:
    server.server.handle_exit(signal.SIGTERM, None)
    return time.monotonic()


def all_of(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def test_a_body_that_does_not_come_does_not_hold_it(make_server: Callable[..., Any]) -> None:
    server = make_server()
    server.server._seconds = 1
    with connected(server, "Authorization: Bearer a secret\r\nContent-Length: 10\r\n") as connection:
        start = told_to_stop(server)
        answer = all_of(connection)
    assert b" 503 " in answer.split(b"\r\n")[0]
    assert b'"code":"stopping"' in answer
    assert 1 < time.monotonic() - start < 10


def test_a_body_that_comes_is_answered(make_server: Callable[..., Any]) -> None:
    server, body = make_server(), json.dumps(ENDLESS | {"max_tokens": 20}).encode()
    head = f"Authorization: Bearer a secret\r\nContent-Length: {len(body)}\r\n"
    with connected(server, head) as connection:
        connection.sendall(body[:-5])
        told_to_stop(server)
        time.sleep(0.5)
        connection.sendall(body[-5:])
        answer = all_of(connection)
    assert b" 200 " in answer.split(b"\r\n")[0]
    assert b'"completion_tokens":20' in answer


def test_who_was_refused_does_not_hold_it(make_server: Callable[..., Any]) -> None:
    server = make_server()
    with connected(server, "Content-Length: 10\r\n") as connection:
        start = told_to_stop(server)
        assert b" 401 " in all_of(connection).split(b"\r\n")[0]
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("stream", [False, True])
def test_told_again_it_cuts_off_answers_and_says_so(make_server: Callable[..., Any], stream: bool) -> None:
    server = make_server(slots=1)
    with (
        httpx.Client(base_url=server.url, headers=HEADERS, timeout=60) as client,
        client.stream("POST", "/completions", json={**ENDLESS, "stream": True}) as first,
    ):
        lines = first.iter_lines()
        next(lines)
        body = json.dumps({**ENDLESS, "stream": stream}).encode()
        with connected(server, f"Authorization: Bearer a secret\r\nContent-Length: {len(body)}\r\n") as second:
            second.sendall(body)
            while not server.app.state.engine.waiting:
                time.sleep(0.01)
            told_to_stop(server)
            start = told_to_stop(server)
            rest = [line for line in lines if line]
            answer = all_of(second)
    assert time.monotonic() - start < 10
    assert '"code": "stopping"' in rest[-1]
    assert (b" 200 " if stream else b" 503 ") in answer.split(b"\r\n")[0]
    assert b"stopping" in answer
    assert b"[DONE]" not in answer


def test_told_a_third_time_it_waits_for_nothing(make_server: Callable[..., Any]) -> None:
    server = make_server()
    with connected(server, "Authorization: Bearer a secret\r\nContent-Length: 10\r\n") as connection:
        for _ in range(3):
            start = told_to_stop(server)
        all_of(connection)
        assert time.monotonic() - start < 1


def test_an_engine_in_the_middle_of_a_long_step_does_not_hold_it(
    make_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, body = make_server(), json.dumps(ENDLESS).encode()
    reading = threading.Event()

    def read(_: Any) -> None:
        reading.set()
        time.sleep(3)

    monkeypatch.setattr(server.app.state.engine, "_read", read)
    with connected(server, f"Authorization: Bearer a secret\r\nContent-Length: {len(body)}\r\n") as connection:
        connection.sendall(body)
        assert reading.wait(20)
        told_to_stop(server)
        start = told_to_stop(server)
        answer = all_of(connection)
    assert time.monotonic() - start < 2.5
    assert b" 503 " in answer.split(b"\r\n")[0]
