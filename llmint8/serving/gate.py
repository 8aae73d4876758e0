"""What stands before the API: the key, limits of what is read, and an eye on clients that hang up."""

import asyncio
import contextlib
import functools
import hmac
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmint8.serving.errors import APIError, stopping
from llmint8.serving.lifecycle import Lifecycle, expire
from llmint8.serving.record import Record, current
from llmint8.serving.refusal import Body, refuse
from llmint8.serving.settings import Settings

OPEN = "/health"
_SECONDS_FOR_BODY = 30


class Gate:
    """Middleware (ASGI) for the paths of the API; others pass as they are, so that a page can be mounted beside it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        guarded: Callable[[str], bool],
        lifecycle: Lifecycle,
        done: Callable[[Record], None],
    ) -> None:
        """Wraps an application.

        Args:
            app: What is behind.
            settings: Key and limits.
            guarded: Whether a path is of the API.
            lifecycle: The server's lifecycle.
            done: Called with each request of the API once it is over.
        """
        self.app, self.settings = app, settings
        self._guarded, self._lifecycle, self._done = guarded, lifecycle, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a connection."""
        if scope["type"] != "http" or not self._guarded(scope["path"]):
            await self.app(scope, receive, send)
            return
        record = Record(uuid.uuid4().hex, scope["method"], scope["path"], (scope.get("client") or ("",))[0])
        scope.setdefault("state", {})["request_id"] = record.id  # where transformers looks for it

        async def noted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                if not record.gone:  # nobody gets what is sent to one who has hung up
                    record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode())]
            await send(message)

        token, body = current.set(record), Body(receive)
        try:
            with self._lifecycle.request():
                try:
                    self._check(Headers(scope=scope), scope)
                    content = await self._read(body, record)
                except APIError as error:
                    await refuse(error, body, noted_send)
                    return
                if not record.gone:
                    await self._serve(scope, content, receive, noted_send, record)
        except Exception:
            record.status = 500
            raise
        finally:
            current.reset(token)
            self._done(record)

    def _check(self, headers: Headers, scope: Scope) -> None:
        """Raises an APIError for what can be told from the head of a request."""
        if scope["path"] == OPEN:
            return
        key = self.settings.api_key
        if key is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
                message = "wrong API key" if given else "no API key: send it as `Authorization: Bearer ...`"
                raise APIError(401, message, code="invalid_api_key")
        if self._lifecycle.stopping:
            raise stopping()
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self.settings.max_body:
            raise self._too_large()
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise APIError(415, f"Content-Type must be application/json, got {kind[:100]!r}")

    def _too_large(self) -> APIError:
        return APIError(413, f"the body has more than {self.settings.max_body} bytes", code="body_too_large")

    async def _read(self, body: Body, record: Record) -> bytes:
        """Reads the body, no more of it than is allowed."""
        content = bytearray()
        try:
            async with asyncio.timeout(_SECONDS_FOR_BODY) as limit:
                with self._lifecycle.ends(functools.partial(expire, limit)):
                    while not body.ended:
                        message = await body.receive()
                        if message["type"] == "http.disconnect":
                            record.hang_up()
                        content += message.get("body", b"")
                        if len(content) > self.settings.max_body:
                            raise self._too_large()
        except TimeoutError:
            if self._lifecycle.stopped:
                raise stopping() from None
            raise APIError(408, f"the body did not come within {_SECONDS_FOR_BODY} s") from None
        return bytes(content)

    async def _serve(self, scope: Scope, body: bytes, receive: Receive, send: Send, record: Record) -> None:
        """Calls what is behind, and cancels the answer as soon as the client hangs up."""
        gone = asyncio.Event()
        bodies: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            record.hang_up()
            gone.set()

        async def receive_again() -> Message:
            if bodies:
                return bodies.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        watcher = asyncio.create_task(watch())
        try:
            await self.app(scope, receive_again, send)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
