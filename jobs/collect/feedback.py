"""Captured exchanges and what people said of them, as conversations to learn and pairs of answers to prefer."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.run.directory import RunDir
from jobs.feedback.records import FOLDER, exchanges_store, ratings_store

Row = Mapping[str, Any]
Record = dict[str, Any]


@dataclass(kw_only=True)
class Said:
    """All that was said of one answer; a later word replaces an earlier one."""

    liked: bool | None = None
    correction: Any = None  # a text, or messages
    ratings: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Learnt:
    """What is made of exchanges."""

    conversations: list[Record] = field(default_factory=list)
    pairs: list[Record] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def learn_from(run: RunDir, *, since: float | None, until: float, unrated: bool, least_score: float) -> Learnt:
    """Conversations and pairs of a serving run's exchanges before `until`, by time; what is left out is counted."""
    folder = run.path / FOLDER
    said = opinions(_before(ratings_store(folder).read(None).to_pylist(), until), least_score)
    found = Learnt()
    for row in _before(exchanges_store(folder).read(since).to_pylist(), until):
        found.counts["exchanges"] += 1
        _learn(row, said.get(row["answer_id"]) or said.get(row["id"]) or Said(), unrated, found)
    return found


def opinions(rows: Iterator[Row], least_score: float) -> dict[str, Said]:
    """What was said of each answer, by the id that people gave."""
    found: dict[str, Said] = {}
    for row in rows:
        said = found.setdefault(str(row["answer_id"]), Said())
        said.ratings.append(str(row["id"]))
        if row["rating"] is not None:
            said.liked = row["rating"] == "up"
        elif row["score"] is not None:
            said.liked = row["score"] >= least_score
        if row["correction"] is not None:
            said.correction = json.loads(row["correction"])
    return found


def _learn(row: Row, said: Said, unrated: bool, found: Learnt) -> None:
    asked = messages_of(row["messages"])
    if row["outcome"] != "completed" or not asked:
        found.counts["not completed"] += 1
        return
    about = {"id": row["id"], "version": row["version"], "time": row["time"], "ratings": said.ratings}
    answer = {"role": "assistant", "content": row["answer"] or ""}
    if said.correction is not None:
        better = [{"role": "assistant", "content": said.correction}] if isinstance(said.correction, str) else said.correction
        found.conversations.append({**about, "messages": [*asked, *better], "why": "corrected"})
        if len(better) == 1 and answer["content"].strip() and better[0] != answer:
            pair = {"prompt": asked, "chosen": better, "rejected": [answer]}
            found.pairs.append({**about, **pair, "why": "corrected"})
        found.counts["corrected"] += 1
    elif said.liked is False:
        found.counts["disliked"] += 1
    elif said.liked or unrated:
        if not answer["content"].strip():
            found.counts["empty"] += 1
            return
        why = "liked" if said.liked else "unrated"
        found.conversations.append({**about, "messages": [*asked, answer], "why": why})
        found.counts[why] += 1
    else:
        found.counts["not judged"] += 1


def messages_of(text: str | None) -> list[dict[str, Any]]:
    """The messages that an exchange was asked with; a completion's prompt is one of the user's."""
    value = json.loads(text) if text else None
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [message for message in value if isinstance(message, dict)] if isinstance(value, list) else []


def _before(rows: list[Row], until: float) -> Iterator[Row]:
    return (row for row in rows if row["time"] < until)
