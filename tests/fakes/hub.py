"""A Hugging Face hub on this machine: repositories in memory, served with the faults of a bad network."""

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 10_000  # larger files have a SHA-256, as with Git LFS


@dataclass
class Faults:
    """Faults of the answers."""

    limit_every: int = 0  # every so many requests are answered by 429
    break_every_bytes: int = 0  # a connection breaks after about so many bytes
    leave_out_headers: bool = False  # no length, range or ETag
    ignore_ranges: bool = False
    silent: bool = False  # requests get no answer
    bytes_per_second: float = 0.0


@dataclass
class FakeHub:
    """A hub, and a second address for contents, to which it redirects."""

    repositories: Mapping[str, Mapping[str, bytes]]  # by `models/ORG/NAME` or `datasets/ORG/NAME`
    token: str | None = None  # the one that may read
    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)  # paths
    sent_bytes: Counter[str] = field(default_factory=Counter)  # by file
    headers: list[Mapping[str, str]] = field(default_factory=list)  # of requests for contents
    address: str = ""
    contents: str = ""

    def info(self, repository: str) -> dict[str, object]:
        """Return the answer to a request about a repository."""
        files = self.repositories[repository]
        return {"id": repository.partition("/")[2], "sha": COMMIT, "siblings": [_sibling(*item) for item in files.items()]}


def _sibling(name: str, data: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    lfs = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
    return {"rfilename": name, "size": len(data), "blobId": blob, **(lfs if len(data) > LARGE_BYTES else {})}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    serves_contents = False
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        if hub.faults.silent:
            time.sleep(30)
            return
        if hub.faults.limit_every and len(hub.requests) % hub.faults.limit_every == 0:
            self._answer(429, b"slow down", {"Retry-After": "1"})
        elif self.serves_contents:
            hub.headers.append(dict(self.headers))
            self._content(path)
        elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif path.startswith("/api/"):
            self._info(path.removeprefix("/api/"))
        else:
            kind = "" if path.startswith("/datasets/") else "/models"
            self._answer(302, b"", {"Location": f"{hub.contents}{kind}{path}?signature=secret"})

    def _info(self, path: str) -> None:
        repository, _, revision = path.partition("/revision/")
        if repository not in self.hub.repositories:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in {"", "main", "v1", COMMIT}:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            assert parse_qs(urlsplit(self.path).query).get("blobs"), "sizes were not asked for"
            self._answer(200, json.dumps(self.hub.info(repository)).encode(), {"Content-Type": "application/json"})

    def _content(self, path: str) -> None:
        faults, (repository, _, file) = self.hub.faults, path.lstrip("/").partition("/resolve/")
        data = self.hub.repositories[repository][file.partition("/")[2]]
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and not faults.ignore_ranges else 0
        self.send_response(206 if start else 200)
        if faults.leave_out_headers:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        left = random.Random(len(self.hub.requests)).randint(1, 2 * faults.break_every_bytes) if faults.break_every_bytes else 0
        try:
            for position in range(start, len(data), 1 << 16):
                piece = data[position : position + (1 << 16)]
                if left and position - start + len(piece) > left:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.wfile.write(piece)
                self.hub.sent_bytes[file] += len(piece)
                if faults.bytes_per_second:
                    time.sleep(len(piece) / faults.bytes_per_second)
        except OSError:  # the client is gone
            self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(hub: FakeHub, host: str = "127.0.0.1") -> Iterator[FakeHub]:
    """Serve a hub at an address of this machine while the block runs."""
    servers = []
    for serves_contents in (False, True):
        handler = type("Handler", (_Handler,), {"hub": hub, "serves_contents": serves_contents})
        server = ThreadingHTTPServer((host, 0), handler)
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
    hub.address, hub.contents = (f"http://{host}:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
