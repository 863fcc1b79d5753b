"""What a reviewer is shown: an exchange with a second answer to the same prompt, or alone, in an order that nobody chose."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ropewalk.jobs.serving.feedback.read import Captured
from ropewalk.jobs.serving.feedback.training_data import answer_of, prompt_of

Said = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """One answer, and who gave it, which its reviewer is not told."""

    id: str  # of the exchange, or of the sample
    version: str
    answer: Said


@dataclass(frozen=True)
class Item:
    """What is judged at once. `id` is that of the exchange whose answer is `first`."""

    id: str
    prompt: Said
    tools: Any
    first: Side
    second: Side | None

    def left_is_first(self, reviewer: str) -> bool:
        """Which answer stands on the left: drawn by item and reviewer, so that a habit of the hand favours nobody."""
        return _hash(self.id, reviewer) % 2 == 0

    def sides(self, reviewer: str) -> tuple[Side, Side | None]:
        """The answers from left to right."""
        if self.second is None or self.left_is_first(reviewer):
            return self.first, self.second
        return self.second, self.first


def find_items(exchanges: Iterable[Captured], samples: Mapping[str, Side]) -> list[Item]:
    """All items, ordered by hash: every reviewer sees the same ones first.

    Of answers to one prompt two are shown together, of different versions where there are such. `samples` are second answers by
    the exchange that they belong to. What has no answer or no text to show is left out.
    """
    groups: dict[bytes, list[Captured]] = defaultdict(list)
    for one in exchanges:
        prompt = prompt_of(one)
        if prompt is not None and answer_of(one) is not None:
            groups[orjson.dumps([prompt, one.tools])].append(one)
    items = [item for group in groups.values() for item in _of_group(group, samples)]
    return sorted(items, key=lambda item: _hash(item.id, ""))


def _of_group(group: Sequence[Captured], samples: Mapping[str, Side]) -> list[Item]:
    waiting = sorted(group, key=lambda one: _hash(one.id, ""))
    found = []
    while waiting:
        first = waiting.pop(0)
        others = [one for one in waiting if answer_of(one) != answer_of(first)]
        other = next((one for one in others if one.version != first.version), others[0] if others else None)
        if other is not None:
            waiting.remove(other)
        second = _side(other) if other is not None else samples.get(first.id)
        if second is not None and second.answer == answer_of(first):
            second = None
        found.append(Item(first.id, prompt_of(first) or "", first.tools, _side(first), second))
        if other is None:  # the rest say the same
            break
    return found


def _side(one: Captured) -> Side:
    return Side(one.id, one.version, answer_of(one) or "")


def _hash(*words: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest())
