"""Cache of answers to greedy requests, by version and request. Disabled if it has no room."""

import hashlib
from collections import OrderedDict
from typing import NamedTuple

from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, COMPLETIONS, ModelRequest


class CachedAnswer(NamedTuple):
    """Content type and body of an answer."""

    content_type: str
    body: bytes


class AnswerCache:
    """Least recently used cache of answers, limited in bytes. Requests are equal if their bytes are."""

    def __init__(self, num_bytes: int) -> None:
        self._max_bytes, self._num_bytes = num_bytes, 0
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()

    def find(self, version: str, request: ModelRequest) -> CachedAnswer | None:
        """Return the answer to an equal request, or None."""
        if not self._is_cacheable(request):
            return None
        key = _key(version, request)
        if (answer := self._answers.get(key)) is not None:
            self._answers.move_to_end(key)
        return answer

    def add(self, version: str, request: ModelRequest, content_type: str, body: bytes) -> None:
        if not self._is_cacheable(request) or len(body) > self._max_bytes // 4:
            return
        key = _key(version, request)
        if (old := self._answers.pop(key, None)) is not None:
            self._num_bytes -= len(old.body)
        self._answers[key] = CachedAnswer(content_type, body)
        self._num_bytes += len(body)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= len(self._answers.popitem(last=False)[1].body)

    def _is_cacheable(self, request: ModelRequest) -> bool:
        return self._max_bytes > 0 and request.greedy and request.path in (CHAT, COMPLETIONS)


def _key(version: str, request: ModelRequest) -> bytes:
    return hashlib.blake2b(b"\0".join([version.encode(), request.path.encode(), request.body]), digest_size=16).digest()
