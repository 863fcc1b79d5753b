"""Access to a page that a command serves to its user: on loopback, by a link that works once, then by a cookie."""

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie

LOOPBACK = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # `no-referrer` would make the Origin of our own forms `null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class LocalAccess:
    """Tokens of a page on a port of this machine. Every link opens the page once; afterwards its cookie does."""

    def __init__(self, page: str, port: int) -> None:
        """`page`: a word for the name of the cookie."""
        self.address = f"http://{LOOPBACK}:{port}"
        self.cookie = f"ropewalk-{page}-{port}"  # with the port, since cookies are shared by all ports of a host
        self._hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
        self._session = secrets.token_urlsafe(32)
        self._token: str | None = None

    def link(self) -> str:
        """Return a new one-time link; earlier unused links become invalid."""
        self._token = secrets.token_urlsafe(32)
        return f"{self.address}/?token={self._token}"

    def redeem(self, token: str) -> str | None:
        """Return the header that sets the cookie, and invalidate the current link; None if this is not its token."""
        if self._token is None or not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        self._token = None
        return f"{self.cookie}={self._session}; HttpOnly; SameSite=Lax; Path=/"

    def is_local(self, host: str | None) -> bool:
        """Check the Host header of a request: another site's name may resolve to this machine (DNS rebinding)."""
        return host in self._hosts

    def has_cookie(self, header: str | None) -> bool:
        """Check the Cookie header of a request."""
        try:
            cookie = SimpleCookie(header or "").get(self.cookie)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._session.encode())
