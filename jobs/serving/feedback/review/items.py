"""Items of a review: an exchange, with a second answer to the same prompt if there is one, in hash order."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ropewalk.jobs.serving.feedback.read import CapturedExchange
from ropewalk.jobs.serving.feedback.training_data import answer_of, prompt_of

Content = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """One answer, with the version that gave it; reviewers do not see the version."""

    id: str  # id of the exchange or of the sample
    version: str
    answer: Content


@dataclass(frozen=True)
class Item:
    """Answers judged together. `id` is the id of the exchange whose answer is `first`."""

    id: str
    prompt: Content
    tools: Any
    first: Side
    second: Side | None

    def left_is_first(self, reviewer: str) -> bool:
        """Return True if the first answer is shown on the left: decided by hash of item and reviewer, to avoid side bias."""
        return _hash(self.id, reviewer) % 2 == 0

    def sides(self, reviewer: str) -> tuple[Side, Side | None]:
        """Return the answers from left to right."""
        if self.second is None or self.left_is_first(reviewer):
            return self.first, self.second
        return self.second, self.first


def find_items(exchanges: Iterable[CapturedExchange], samples: Mapping[str, Side]) -> list[Item]:
    """Return all items in hash order, the same for every reviewer.

    Answers to the same prompt are paired, if possible across versions. `samples` are second answers by exchange id. Exchanges
    without an answer or without text are left out.
    """
    groups: dict[bytes, list[CapturedExchange]] = defaultdict(list)
    for exchange in exchanges:
        prompt = prompt_of(exchange)
        if prompt is not None and answer_of(exchange) is not None:
            groups[orjson.dumps([prompt, exchange.tools])].append(exchange)
    items = [item for group in groups.values() for item in _of_group(group, samples)]
    return sorted(items, key=lambda item: _hash(item.id, ""))


def _of_group(group: Sequence[CapturedExchange], samples: Mapping[str, Side]) -> list[Item]:
    waiting = sorted(group, key=lambda exchange: _hash(exchange.id, ""))
    items = []
    while waiting:
        first = waiting.pop(0)
        others = [exchange for exchange in waiting if answer_of(exchange) != answer_of(first)]
        other = next((exchange for exchange in others if exchange.version != first.version), others[0] if others else None)
        if other is not None:
            waiting.remove(other)
        second = _side(other) if other is not None else samples.get(first.id)
        if second is not None and second.answer == answer_of(first):
            second = None
        items.append(Item(first.id, prompt_of(first) or "", first.tools, _side(first), second))
        if other is None:  # the remaining answers are equal
            break
    return items


def _side(exchange: CapturedExchange) -> Side:
    return Side(exchange.id, exchange.version, answer_of(exchange) or "")


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest())
