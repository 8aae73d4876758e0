"""Servers in threads of the tests, all with one model."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI

from llmint8.serving import Int8ModelManager, Settings, create_app, info
from llmint8.serving.server import Server, bind, own_url, url
from llmint8.serving.ui import mount

KEY = "a secret"


@dataclass
class Running:
    """A server that runs."""

    app: FastAPI
    url: str
    server: Server

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def manager(smollm2: Path) -> Int8ModelManager:
    return Int8ModelManager(str(smollm2))


@contextlib.contextmanager
def running(manager: Int8ModelManager, settings: Settings, ui: bool = False) -> Iterator[Running]:
    app = create_app(manager, settings)
    listener = bind("127.0.0.1", 0)
    if ui:
        mount(app, info(manager, app.state.engine, settings), own_url(listener), settings)
    server = Server(app, shutdown_seconds=5, ready="ready")
    ready = threading.Event()

    async def serve() -> None:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        ready.set()
        await task

    address = url(listener)
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    assert server.started
    try:
        yield Running(app, address, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        app.state.engine.close()


@pytest.fixture(scope="session")
def server(manager: Int8ModelManager) -> Iterator[Running]:
    """With a key and small limits."""
    with running(manager, Settings(api_key=KEY, max_tokens=200, max_prompt_tokens=300, max_body=20_000)) as found:
        yield found


@pytest.fixture
def make_server(manager: Int8ModelManager) -> Iterator[Callable[..., Running]]:
    """Returns a function: settings -> a server that runs until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(manager, Settings(api_key=KEY, **settings)))


@pytest.fixture(scope="module")
def make_ui(manager: Int8ModelManager) -> Iterator[Callable[..., Running]]:
    """Returns a function: settings -> a server with a page, which runs until the module ends."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(manager, Settings(**settings), ui=True))
