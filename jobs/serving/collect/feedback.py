"""What people said of a serving run's answers, as conversations to learn and pairs of answers to prefer, each with its origin."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.read import Captured, exchanges
from ropewalk.jobs.serving.feedback.review.export import judgements_by_item, reviewed_conversations, reviewed_pairs
from ropewalk.jobs.serving.feedback.review.judgements import Judgement
from ropewalk.jobs.serving.feedback.training_data import answer_of, prompt_of, to_conversations, to_pairs

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What is made of exchanges; what is left out is counted by reason."""

    conversations: list[Record]
    pairs: list[Record]
    counts: Counter[str]


def learn_from(run: RunDir, *, since: float | None, until: float, unrated: bool) -> Learnt:
    """Conversations and pairs of a serving run's exchanges, of what users said of them, and of what reviewers have judged.

    All of it is of before `until`; an exchange counts where it, or anything said of it, is of `since` or later.
    """
    judged = judgements_by_item(run, until)
    found = [
        one
        for one in exchanges(run.path, until=until, said_until=until)
        if since is None or _newest(one, judged.get(one.id, ())) >= since
    ]
    origin = {one.id: one for one in found}
    conversations, pairs = to_conversations(found), to_pairs(found)
    reviewed = [record for record in reviewed_conversations(run, until).records if record["id"] in origin]
    better = {record["id"] for record in reviewed}  # a reviewer's word stands before a user's
    others = [*conversations.records, *(_unrated(found) if unrated else ())]
    words = Counter({"exchanges": len(found), "reviewed": len(better)})
    preferred = [*pairs.records, *(record for record in reviewed_pairs(run, until).records if record["id"] in origin)]
    return Learnt(
        conversations=[
            *(_with_origin(record, origin[record["id"]]) for record in others if record["id"] not in better),
            *(_with_origin(record, origin[record["id"]], "reviewed") for record in reviewed),
        ],
        pairs=[_with_origin(record, origin[record["id"]]) for record in preferred],
        counts=words + Counter(_said(one) for one in found) + conversations.left_out,
    )


def _newest(one: Captured, judgements: Sequence[Judgement]) -> float:
    """The time of the exchange, or of the last thing that was said of it."""
    return max([one.time, *(rating.time for rating in one.ratings), *(judgement.time for judgement in judgements)])


def _said(one: Captured) -> str:
    if one.correction is not None:
        return "corrected"
    return {1: "liked", -1: "disliked", None: "not judged"}[one.rating]


def _unrated(found: list[Captured]) -> list[Record]:
    """Conversations of which nobody said anything."""
    made = []
    for one in found:
        asked, answer = prompt_of(one), answer_of(one)
        if not one.ratings and isinstance(asked, list) and isinstance(answer, list):
            made.append({"messages": [*asked, *answer], **({"tools": one.tools} if one.tools else {}), "id": one.id})
    return made


def _with_origin(record: Record, one: Captured, why: str = "") -> Record:
    ratings = [rating.id for rating in one.ratings]
    return {**record, "version": one.version, "time": one.time, "ratings": ratings, "why": why or _said(one)}
