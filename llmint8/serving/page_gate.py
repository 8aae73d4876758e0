"""What stands before the page: no uploads, which Gradio takes from everybody, and an end to what a page keeps open."""

import asyncio
import contextlib
import functools

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmint8.serving.errors import APIError
from llmint8.serving.lifecycle import Lifecycle, expire
from llmint8.serving.refusal import Body, refuse

PATH = "/ui"
_LOGIN = f"{PATH}/login"


class PageGate:
    """Middleware (ASGI) for the paths of the page; others pass as they are."""

    def __init__(self, app: ASGIApp, *, max_body: int, lifecycle: Lifecycle) -> None:
        """Wraps an application.

        Args:
            app: What is behind.
            max_body: Most bytes of a request.
            lifecycle: The server's lifecycle.
        """
        self.app, self.max_body, self._lifecycle = app, max_body, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a connection."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{PATH}/"):
            await self.app(scope, receive, send)
            return
        error = self._error(scope["path"], Headers(scope=scope))
        if error is not None:
            await refuse(error, Body(receive), send)
            return
        await self._serve(scope, receive, send)

    def _error(self, path: str, headers: Headers) -> APIError | None:
        kind = headers.get("content-type", "").strip().lower()
        path = path.rstrip("/")
        if path.endswith("/upload") or (kind.startswith("multipart/") and path != _LOGIN):  # which is a form, too
            return APIError(404, "the page takes no uploads")
        if "transfer-encoding" in headers:
            return APIError(411, "a request to the page needs a Content-Length")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self.max_body:
            return APIError(413, f"the body has more than {self.max_body} bytes", code="body_too_large")
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls what is behind; a stream of events ends when the server stops, since an open page listens for ever."""
        ended = False

        async def noted_send(message: Message) -> None:
            nonlocal ended
            await send(message)
            if message["type"] == "http.response.start":
                if Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream"):
                    until_the_end.enter_context(self._lifecycle.ends(functools.partial(expire, limit)))
            else:
                ended = not message.get("more_body", False)

        try:
            with contextlib.ExitStack() as until_the_end:
                async with asyncio.timeout(None) as limit:
                    await self.app(scope, receive, noted_send)
        except TimeoutError:
            if not limit.expired():
                raise
        if limit.expired() and not ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
