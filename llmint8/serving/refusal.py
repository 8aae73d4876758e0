"""Answers a request that is refused before its body has been read."""

import asyncio
import contextlib

from starlette.types import Message, Receive, Send

from llmint8.serving.errors import APIError

# Most of a body that is read and dropped: for how long, without any of it coming and in all, and how much.
_PAUSE, _MOST_SECONDS, _MOST_BYTES = 2.0, 10.0, 64 << 20


class Body:
    """The body of a request, of which is known whether there is more to come."""

    def __init__(self, receive: Receive) -> None:
        """Nothing has been read.

        Args:
            receive: The ASGI callable that gives what comes.
        """
        self._receive = receive
        self.ended = False

    async def receive(self) -> Message:
        """Returns the next message: a piece of the body, or that the client has hung up."""
        message = await self._receive()
        self.ended = not message.get("more_body", False)
        return message


async def refuse(error: APIError, body: Body, send: Send) -> None:
    """Sends an error, drops what still comes of the body for a moment, and closes the connection.

    A connection that is closed with something unread is reset, and then the client may never see the error.

    Args:
        error: What was wrong.
        body: Body of the request.
        send: The ASGI callable that sends.
    """
    response = error.response()
    response.headers["connection"] = "close"  # there may be more
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})  # the connection stays
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MOST_SECONDS):
            dropped = 0
            while not body.ended and dropped < _MOST_BYTES:
                async with asyncio.timeout(_PAUSE):
                    dropped += len((await body.receive()).get("body", b""))
    await send({"type": "http.response.body", "body": b"", "more_body": False})
