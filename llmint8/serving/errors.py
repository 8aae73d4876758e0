"""Errors as OpenAI's API returns them: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_MOST_CHARACTERS = 500  # of a message: what a client sent may be in it
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(Exception):
    """An error that a client gets."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        """Keeps what will be sent.

        Args:
            status: HTTP status.
            message: What was wrong and what to do.
            param: The field of the request that was wrong.
            code: A word for programs.
            retry_after: Seconds after which to try again; 0 says nothing about it.
        """
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after
        self.message = cut(message, _MOST_CHARACTERS)
        self.param = None if param is None else cut(param, 100)

    def body(self) -> dict[str, Any]:
        """Returns the object that is sent."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the response that is sent."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def stopping() -> APIError:
    """Returns the error of a server that stops."""
    return APIError(503, "the server is stopping", code="stopping")


def cut(text: str, most: int) -> str:
    """Returns a text, or its beginning if it is too long.

    Args:
        text: For a message.
        most: Characters.
    """
    return text if len(text) <= most else f"{text[:most]}..."


def handle_errors(app: FastAPI) -> None:
    """Has an application answer with such errors, whatever goes wrong.

    Args:
        app: A FastAPI application.
    """

    async def ours(request: Request, error: Any) -> JSONResponse:
        return error.response()

    async def http(request: Request, error: Any) -> JSONResponse:
        if error.status_code in (404, 405):
            message = {404: "there is no {path}", 405: "{path} does not take {method}"}[error.status_code]
            text = message.format(path=request.url.path, method=request.method)
        else:
            text = str(error.detail)
        response = APIError(error.status_code, text).response()
        response.headers.update(error.headers or {})
        return response

    async def malformed(request: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        why = first.get("ctx", {}).get("error") if first["type"] == "json_invalid" else None
        message = f"the body is not valid JSON: {why}" if why else "the body must be a JSON object"
        return APIError(400, message).response()

    async def unexpected(request: Request, error: Any) -> JSONResponse:
        return APIError(500, "the server made a mistake; its log says which").response()

    app.add_exception_handler(APIError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(Exception, unexpected)
