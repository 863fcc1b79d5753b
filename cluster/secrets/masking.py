"""Replacement of secrets in text and in streams of output by `***NAME***`."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from urllib.parse import quote

from ropewalk.cluster.secrets.store import LEAST_LETTERS


class Mask:
    """Finds the values of secrets, as they are and as programs write them into messages."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names = {form: f"***{name}***".encode() for name, value in secrets.items() for form in _forms(value)}

    def __bool__(self) -> bool:
        return bool(self._names)

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        longest_first = sorted(self._names, key=len, reverse=True)
        return re.compile(b"|".join(map(re.escape, longest_first)))

    def text(self, text: str) -> str:
        """Return a text with the secrets in it masked."""
        return self.whole(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    def whole(self, data: bytes) -> bytes:
        """Return data with the secrets in it masked."""
        return self._replace(data, len(data))[0]

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """Return data with the secrets in it masked, and its end that may be the beginning of a secret."""
        masked, end = self._replace(data, len(data) - self._begun(data))
        return masked, data[end:]

    def _replace(self, data: bytes, limit: int) -> tuple[bytes, int]:
        """Mask the secrets that begin before `limit`; return the masked data and the number of bytes that it stands for."""
        if not any(form in data for form in self._names):  # faster than the pattern, and usual
            return data[:limit], limit
        parts, end = [], 0
        for match in self._pattern.finditer(data):
            if match.start() >= limit:
                break
            parts += [data[end : match.start()], self._names[match[0]]]
            end = match.end()
        limit = max(limit, end)
        return b"".join([*parts, data[end:limit]]), limit

    def _begun(self, data: bytes) -> int:
        """Return the length of the longest end of `data` that is the beginning, but not all, of a secret."""
        return max((_overlap(data, form) for form in self._names), default=0)


class MaskedStream:
    """A stream of output in which secrets are masked, also those that arrive in parts."""

    def __init__(self, mask: Mask) -> None:
        self._mask, self._rest = mask, b""

    def feed(self, data: bytes) -> bytes:
        """Take the next part of the stream, and return what can be written."""
        masked, self._rest = self._mask.split(self._rest + data)
        return masked

    def end(self) -> bytes:
        """Return the last part."""
        rest, self._rest = self._rest, b""
        return self._mask.whole(rest)


def _forms(value: str) -> Iterator[bytes]:
    """Yield what stands for a value in output: itself, as in JSON, in Python's messages and in URLs, and each longer line."""
    lines = [line for line in map(str.strip, value.splitlines()) if len(line) >= LEAST_LETTERS]
    for text in {value, *lines}:
        for form in {text, json.dumps(text)[1:-1], repr(text)[1:-1], quote(text, safe="")}:
            yield form.encode(errors="surrogatepass")


def _overlap(data: bytes, form: bytes) -> int:
    tail = data[-(len(form) - 1) :]
    start = tail.find(form[0])
    while start >= 0 and not form.startswith(tail[start:]):
        start = tail.find(form[0], start + 1)
    return len(tail) - start if start >= 0 else 0
