"""The review page's server: on loopback, for whoever has the link, and for no other page that their browser shows."""

import hmac
import secrets
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ropewalk.jobs.serving.feedback.review.page import Viewer, done_page, item_page, refusal_page
from ropewalk.jobs.serving.feedback.review.session import Review

LOOPBACK = "127.0.0.1"
MOST_BYTES = 1 << 20  # of a form
MOST_DISCARDED = 16 << 20  # of one that is refused: whoever is still sending would not see why
FILES = {"/page.css": "text/css", "/page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # `no-referrer` would make the Origin of our own forms `null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one reviewer. The link of `link()` opens the page once; from then on a cookie does, until the server ends."""

    daemon_threads = True

    def __init__(self, review: Review, write_files: Callable[[], Sequence[str]], port: int = 0) -> None:
        self.review, self.write_files = review, write_files
        self.session, self.csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._token: str | None = None
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.server_address[1]}"

    @property
    def cookie(self) -> str:
        """The cookie's name: servers on other ports of this machine have others, since cookies know no port."""
        return f"ropewalk-review-{self.server_address[1]}"

    def link(self) -> str:
        """A link that opens the page once; older ones that were not used stop working."""
        self._token = secrets.token_urlsafe(32)
        return f"{self.address}/?token={self._token}"

    def take(self, token: str) -> bool:
        """Whether this is the link's token; it is none from now on."""
        expected, right = self._token, False
        if expected is not None and hmac.compare_digest(token.encode(), expected.encode()):
            self._token, right = None, True
        return right


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "ropewalk", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Show the page, or one of its files."""
        if not self._is_ours():
            return
        parts = urlsplit(self.path)
        token = parse_qs(parts.query).get("token", [""])[0]
        if parts.path == "/" and token:
            if self.server.take(token):
                cookie = f"{self.server.cookie}={self.server.session}; HttpOnly; SameSite=Lax; Path=/"
                self._answer(HTTPStatus.SEE_OTHER, b"", headers={"Location": "/", "Set-Cookie": cookie})
            elif self._has_cookie():
                self._see("/")
            else:
                self._refuse("This link was used already. Press Enter where `ropewalk review` runs: it prints a new one.")
        elif parts.path in FILES:
            self._answer(HTTPStatus.OK, (Path(__file__).parent / parts.path[1:]).read_bytes(), FILES[parts.path])
        elif not self._has_cookie():
            self._refuse("Open the link that `ropewalk review` has printed.")
        elif parts.path == "/":
            self._answer(HTTPStatus.OK, self._page().encode("utf-8", "replace"))
        else:
            self._answer(HTTPStatus.NOT_FOUND, refusal_page("There is no such page.").encode())

    def do_POST(self) -> None:
        """Write a judgement down, or take one back; then show what comes next."""
        form = self._form()
        if form is None or not self._is_ours():
            return
        if not self._has_cookie() or self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            self._refuse("This form was not sent by the review page.")
        elif not hmac.compare_digest(form.get("csrf", "").encode(), self.server.csrf.encode()):
            self._refuse("This page is of an earlier server. Open the link that `ropewalk review` has printed.")
        elif self.path == "/undo":
            self.server.review.undo()
            self._see("/")
        elif self.path == "/judge":
            save = form.get("save", "")
            word = save if save in {"left", "right"} else form.get("choice", "")
            if save and "correction_right" not in form:
                word = "right"  # a single answer that had to be corrected is none to learn from as it is
            corrected = form.get(f"correction_{save}", "").replace("\r\n", "\n") if save else ""
            self.server.review.judge(form.get("item", ""), word, save, corrected)
            self._see("/")
        else:
            self._answer(HTTPStatus.NOT_FOUND, refusal_page("There is no such page.").encode())

    def _page(self) -> str:
        review = self.server.review
        item = review.current()
        viewer = Viewer(review.run.id, review.reviewer, review.progress(), self.server.csrf)
        if item is None:
            files = self.server.write_files()
            return done_page(viewer, review.agreements(), files)
        trouble = review.sampler.trouble if review.sampler and item.second is None else ""
        note = f"No second answer: {trouble}" if trouble else ""
        return item_page(viewer, item, note)

    def _form(self) -> dict[str, str] | None:
        """The fields of the form; None, and answered, where it is none."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BYTES:
            self.close_connection = True
            self._discard(min(int(length), MOST_DISCARDED) if length.isdigit() else 0)
            self._refuse(f"A form has at most {MOST_BYTES} bytes.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        raw = self.rfile.read(int(length)).decode("utf-8", "replace")
        return {name: values[0] for name, values in parse_qs(raw, keep_blank_values=True).items()}

    def _discard(self, length: int) -> None:
        while length > 0 and (found := len(self.rfile.read(min(length, MOST_BYTES)))):
            length -= found

    def _is_ours(self) -> bool:
        """Whether the browser asked for this machine by its own name: another site's name may be made to point here."""
        port = self.server.server_address[1]
        if self.headers.get("Host") in {f"{LOOPBACK}:{port}", f"localhost:{port}"}:
            return True
        self._refuse("This server answers to 127.0.0.1 alone.", HTTPStatus.MISDIRECTED_REQUEST)
        return False

    def _has_cookie(self) -> bool:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.server.session.encode())

    def _see(self, place: str) -> None:
        self._answer(HTTPStatus.SEE_OTHER, b"", headers={"Location": place})

    def _refuse(self, words: str, status: HTTPStatus = HTTPStatus.FORBIDDEN) -> None:
        self._answer(status, refusal_page(words).encode())

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/html", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called there
        """Say nothing: the link, which is a secret, would stand in the log."""
