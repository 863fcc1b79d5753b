"""Errors that the gateway answers with, in OpenAI's format."""

import orjson
from aiohttp import web

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class RefusalError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())  # it may quote a header with any bytes
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> bytes:
        """Return the error as a JSON object."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return orjson.dumps({"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}})

    def response(self, headers: dict[str, str] | None = None) -> web.Response:
        """Return the error as a response."""
        response = json_response(self.body(), status=self.status, headers=headers)
        if self.retry_after is not None:
            response.headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        return response


def json_response(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a response with a JSON body."""
    return web.Response(body=body, status=status, headers={**(headers or {}), "content-type": "application/json"})
