"""Answers to greedy requests, kept by what was asked of which version. Off unless it has room."""

import hashlib
from collections import OrderedDict
from typing import NamedTuple

from ropewalk.jobs.serving.serve.gateway.exchange.asked import CHAT, COMPLETIONS, Asked


class KeptAnswer(NamedTuple):
    """The body of an answer."""

    content_type: bytes
    body: bytes


class AnswerCache:
    """So many bytes of answers, those that were asked for last. Equal requests are equal bytes of one version."""

    def __init__(self, num_bytes: int) -> None:
        self._most_bytes, self._num_bytes = num_bytes, 0
        self._kept: OrderedDict[bytes, KeptAnswer] = OrderedDict()

    def find(self, version: str, asked: Asked) -> KeptAnswer | None:
        """The answer that the same request had."""
        if not self._takes(asked):
            return None
        key = _key(version, asked)
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return kept

    def add(self, version: str, asked: Asked, content_type: bytes, body: bytes) -> None:
        """Keep an answer that came to its end."""
        if not self._takes(asked) or len(body) > self._most_bytes // 4:
            return
        key = _key(version, asked)
        if (old := self._kept.pop(key, None)) is not None:
            self._num_bytes -= len(old.body)
        self._kept[key] = KeptAnswer(content_type, body)
        self._num_bytes += len(body)
        while self._num_bytes > self._most_bytes:
            self._num_bytes -= len(self._kept.popitem(last=False)[1].body)

    def _takes(self, asked: Asked) -> bool:
        return self._most_bytes > 0 and asked.greedy and asked.path in (CHAT, COMPLETIONS)


def _key(version: str, asked: Asked) -> bytes:
    return hashlib.blake2b(b"\0".join([version.encode(), asked.path.encode(), asked.body]), digest_size=16).digest()
