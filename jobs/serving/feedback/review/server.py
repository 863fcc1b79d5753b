"""HTTP server of the review page: on loopback, protected by a one-time link and against cross-site requests."""

import hmac
import secrets
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ropewalk.cluster.local_access import HEADERS, LOOPBACK, LocalAccess
from ropewalk.cluster.page import style
from ropewalk.jobs.serving.feedback.review.page import Viewer, done_page, item_page, refusal_page
from ropewalk.jobs.serving.feedback.review.session import Review

MAX_FORM_BYTES = 1 << 20
MAX_DISCARDED_BYTES = 16 << 20  # read from a refused form, so that the browser gets to see the response
FILES = {"/review.css": "text/css", "/page.js": "text/javascript"}


class ReviewServer(ThreadingHTTPServer):
    """Server for one reviewer. The link from `link()` opens the page once; afterwards a cookie does, until the server ends."""

    daemon_threads = True

    def __init__(self, review: Review, write_files: Callable[[], Sequence[str]], port: int = 0) -> None:
        self.review, self.write_files = review, write_files
        self.csrf = secrets.token_urlsafe(32)
        super().__init__((LOOPBACK, port), _Handler)
        self.access = LocalAccess("review", self.server_address[1])

    @property
    def address(self) -> str:
        return self.access.address

    def link(self) -> str:
        """Return a new one-time link; earlier unused links become invalid."""
        return self.access.link()


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "ropewalk", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if not self._has_local_host():
            return
        parts = urlsplit(self.path)
        token = parse_qs(parts.query).get("token", [""])[0]
        if parts.path == "/" and token:
            if cookie := self.server.access.redeem(token):
                self._answer(HTTPStatus.SEE_OTHER, b"", headers={"Location": "/", "Set-Cookie": cookie})
            elif self._has_cookie():
                self._redirect("/")
            else:
                self._refuse("This link has been used already. Press Enter in the terminal of `ropewalk review` for a new one.")
        elif parts.path in FILES:
            content = (Path(__file__).parent / parts.path[1:]).read_text()
            text = f"{style()}{content}" if parts.path.endswith(".css") else content
            self._answer(HTTPStatus.OK, text.encode(), FILES[parts.path])
        elif not self._has_cookie():
            self._refuse("Open the link printed by `ropewalk review`.")
        elif parts.path == "/":
            self._answer(HTTPStatus.OK, self._page().encode("utf-8", "replace"))
        else:
            self._answer(HTTPStatus.NOT_FOUND, refusal_page("Page not found.").encode())

    def do_POST(self) -> None:
        """Record or undo a judgement, then redirect to the next item."""
        form = self._form()
        if form is None or not self._has_local_host():
            return
        if not self._has_cookie() or self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            self._refuse("This form was not sent by the review page.")
        elif not hmac.compare_digest(form.get("csrf", "").encode(), self.server.csrf.encode()):
            self._refuse("This page belongs to an earlier session. Open the link printed by `ropewalk review`.")
        elif self.path == "/undo":
            self.server.review.undo()
            self._redirect("/")
        elif self.path == "/judge":
            save = form.get("save", "")
            choice = save if save in {"left", "right"} else form.get("choice", "")
            if save and "correction_right" not in form:
                choice = "right"  # a single answer that needed a correction counts as bad
            corrected = form.get(f"correction_{save}", "").replace("\r\n", "\n") if save else ""
            self.server.review.judge(form.get("item", ""), choice, save, corrected)
            self._redirect("/")
        else:
            self._answer(HTTPStatus.NOT_FOUND, refusal_page("Page not found.").encode())

    def _page(self) -> str:
        review = self.server.review
        item = review.current()
        viewer = Viewer(review.run.id, review.reviewer, review.progress(), self.server.csrf)
        if item is None:
            files = self.server.write_files()
            return done_page(viewer, review.agreements(), files)
        error = review.sampler.error if review.sampler and item.second is None else ""
        note = f"No second answer: {error}" if error else ""
        return item_page(viewer, item, note)

    def _form(self) -> dict[str, str] | None:
        """Return the fields of the form; None if it was refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_FORM_BYTES:
            self.close_connection = True
            self._discard(min(int(length), MAX_DISCARDED_BYTES) if length.isdigit() else 0)
            self._refuse(f"The form exceeds {MAX_FORM_BYTES} bytes.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        raw = self.rfile.read(int(length)).decode("utf-8", "replace")
        return {name: values[0] for name, values in parse_qs(raw, keep_blank_values=True).items()}

    def _discard(self, length: int) -> None:
        while length > 0 and (num_read := len(self.rfile.read(min(length, MAX_FORM_BYTES)))):
            length -= num_read

    def _has_local_host(self) -> bool:
        if self.server.access.is_local(self.headers.get("Host")):
            return True
        self._refuse("This server only answers requests for 127.0.0.1.", HTTPStatus.MISDIRECTED_REQUEST)
        return False

    def _has_cookie(self) -> bool:
        return self.server.access.has_cookie(self.headers.get("Cookie"))

    def _redirect(self, location: str) -> None:
        self._answer(HTTPStatus.SEE_OTHER, b"", headers={"Location": location})

    def _refuse(self, message: str, status: HTTPStatus = HTTPStatus.FORBIDDEN) -> None:
        self._answer(status, refusal_page(message).encode())

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/html", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - name given by the base class
        """Log nothing: the log would contain the secret link."""
