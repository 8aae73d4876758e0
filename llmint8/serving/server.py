"""The process that serves: uvicorn, which tells when it is ready and lets answers end when it is told to stop."""

import asyncio
import logging
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

logger = logging.getLogger(__name__)
_BACKLOG = 2048  # connections that wait while the model is loaded
_SECONDS_TO_SEND = 5  # to clients that are slow to read it, what was cut off
_SECONDS_OF_PAGE = 0.5  # to show the end of an answer


class Server(uvicorn.Server):
    """Stops on SIGTERM and SIGINT with status 0 once answers have ended; a second signal cuts them off."""

    def __init__(self, app: FastAPI, shutdown_seconds: int, ready: str) -> None:
        """Prepares a server.

        Args:
            app: What `create_app` returned.
            shutdown_seconds: That answers have to end.
            ready: A line to print once requests are taken.
        """
        super().__init__(uvicorn.Config(app, log_level="error", access_log=False, server_header=False))
        self._engine, self._lifecycle = app.state.engine, app.state.lifecycle
        self._ready, self._seconds = ready, shutdown_seconds
        self._hurries = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, and says so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        print(self._ready, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens no more, and waits until all connections have ended."""
        ending = asyncio.create_task(self._end())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end(self) -> None:
        """Lets go of what is open, or forces it."""
        try:
            await self._let_go()
            await asyncio.sleep(_SECONDS_TO_SEND)
        except Exception:
            logger.exception("the server could not end in order")
        self._force()

    async def _let_go(self) -> None:
        """Gives requests their time, cuts off those that need more, and then ends what is open besides."""
        end = time.monotonic() + self._seconds
        while self._lifecycle.in_flight and not self._hurries and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if self._lifecycle.in_flight:
            self._engine.close(seconds=0)
        await asyncio.sleep(_SECONDS_OF_PAGE)
        self._lifecycle.stop()

    def _force(self) -> None:
        """Ends also what does not let itself be ended, without a traceback for each."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.force_exit = True
        for connection in list(self.server_state.connections):  # uvicorn waits for them, from Python 3.12 on
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to stop; told so again, cuts off answers; told so once more, waits for nothing."""
        if not self._lifecycle.stopping:
            self._lifecycle.stopping = True
            super().handle_exit(sig, frame)
            self._captured_signals.clear()  # uvicorn would raise them again at the end, for a status that is not 0
        elif not self._hurries:
            self._hurries = True
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._force)


def bind(host: str, port: int) -> socket.socket:
    """Takes an address and listens on it, before a model is loaded for it.

    Args:
        host: A name or an address.
        port: 0 for any that is free.

    Raises:
        OSError: The address is taken, or not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # until then, a second server could bind it, too
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    return listener


def url(listener: socket.socket) -> str:
    """Returns the address of a socket as clients of the API write it."""
    host, port, *_ = listener.getsockname()
    return _url(host, port)


def own_url(listener: socket.socket) -> str:
    """Returns the address of a socket as this process itself reaches it, also if it listens on all interfaces."""
    host, port, *_ = listener.getsockname()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return _url(host, port)


def run(app: FastAPI, listener: socket.socket, shutdown_seconds: int) -> None:
    """Serves until a signal says to stop.

    Args:
        app: What `create_app` returned.
        listener: What `bind` returned.
        shutdown_seconds: That answers have to end.
    """
    ready = f"llmint8: {app.state.manager.name} is served at {url(listener)}"
    try:
        Server(app, shutdown_seconds, ready).run(sockets=[listener])
    finally:
        app.state.engine.close()


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
