"""Answers a request that is refused before its body has been read."""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from llmint8.serving.errors import APIError

# Most of a body that is read to no end, and for how long.
_MOST_BYTES, _MOST_SECONDS = 64 << 20, 10.0


async def refuse(error: APIError, scope: Scope, receive: Receive, send: Send) -> None:
    """Drops what is left of the body, sends the error and closes the connection.

    A connection that is closed with something unread is reset, and then the client may never see the error.

    Args:
        error: What was wrong.
        scope: Of the request.
        receive: Of the request.
        send: Of the request.
    """
    if "expect" not in Headers(scope=scope):  # `100-continue`: the client sends nothing before it is told to
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MOST_SECONDS):
                await _drop_body(receive)
    response = error.response()
    response.headers["connection"] = "close"  # there may be more
    await response(scope, receive, send)


async def _drop_body(receive: Receive) -> None:
    dropped = 0
    while dropped < _MOST_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):  # the end, or the client has hung up
            return
