"""What stands before the page: Gradio takes files from everybody, and the page has no use for any."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llmint8.serving.errors import APIError
from llmint8.serving.refusal import refuse

PATH = "/ui"
_LOGIN = f"{PATH}/login"


class NoUploads:
    """Middleware (ASGI) that refuses uploads to the page, and bodies that are too large; other paths pass."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        """Wraps an application.

        Args:
            app: What is behind.
            max_body: Most bytes of a request.
        """
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a connection."""
        if scope["type"] == "http" and scope["path"].startswith(f"{PATH}/"):
            error = self._error(scope["path"], Headers(scope=scope))
            if error is not None:
                await refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)

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
