"""Requests to the API server with httpx2: persistent connections, proxies, and the user's credentials."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import orjson

from ropewalk.k8s.api.client import ApiAwayError

if TYPE_CHECKING:
    from httpcore2 import NetworkStream

ANSWER_SECONDS = 8.0  # someone at a terminal waits for the answer
CONNECT_SECONDS = 4.0
TIMEOUT = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
LIMITS = httpx2.Limits(max_connections=32, max_keepalive_connections=32)

logging.getLogger("httpx2").setLevel(logging.WARNING)  # no log line per request


class HttpTransport:
    """An httpx2 client as a `StreamTransport` of `ropewalk.k8s.api.client`."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client, self.server = client, str(client.base_url).rstrip("/")

    def close(self) -> None:
        self.client.close()

    def request(self, method: str, path: str, params: Mapping[str, str], body: Any, content_type: str) -> tuple[int, Any]:
        """Send a request and return status and content. A GET is repeated if its connection was closed in between."""
        content = orjson.dumps(body) if body is not None else None
        headers = {"Content-Type": content_type} if body is not None else {}
        with self._translated(path):
            try:
                response = self.client.request(method, path, params=params, content=content, headers=headers)
            except httpx2.RemoteProtocolError:
                if method != "GET":
                    raise
                # the server closed an idle connection; that says nothing about its health
                response = self.client.request(method, path, params=params, content=content, headers=headers)
        return response.status_code, _content(response)

    @contextmanager
    def upgrade(
        self, path: str, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> "Iterator[tuple[int, Any, NetworkStream]]":
        """Request a WebSocket; yield status, content (only of a refusal) and connection."""
        with self._translated(path), self.client.stream("GET", path, params=params, headers=headers) as response:
            if refused := response.status_code >= 400:
                response.read()
            yield response.status_code, _content(response) if refused else None, response.extensions["network_stream"]

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except httpx2.TimeoutException:
            raise ApiAwayError(f"the API server {self.server} did not answer in time ({path})") from None
        except httpx2.TransportError as error:
            raise ApiAwayError(f"the API server {self.server} cannot be reached: {error}") from None


def _content(response: httpx2.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return response.text
