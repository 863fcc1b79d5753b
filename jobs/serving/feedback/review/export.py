"""Judgements as training data: preference pairs for `align`, corrected conversations for `finetune`."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.read import Captured, exchanges
from ropewalk.jobs.serving.feedback.review.items import Side
from ropewalk.jobs.serving.feedback.review.judgements import Judgement, judgements_store, standing
from ropewalk.jobs.serving.feedback.review.samples import known_samples
from ropewalk.jobs.serving.feedback.training_data import Made, answer_of, prompt_of

PAIRS, CHATS = "pairs.jsonl", "chats.jsonl"


class Judged(NamedTuple):
    """An item with all that was said of it."""

    exchange: Captured
    answers: dict[str, Any]  # by the ids of exchange and sample
    judgements: list[Judgement]


def reviewed_pairs(run: RunDir, until: float | None = None) -> Made:
    """{prompt, chosen, rejected}: what most reviewers of a pair prefer, and each correction before what it corrects.

    `until`: by what was judged before this time, in seconds since the epoch.
    """
    made = Made()
    for judged in _judged(run, made, until):
        votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # of the same two answers: a second one may be another
        for judgement in judged.judgements:
            if judgement.second:
                votes[judgement.first, judgement.second][judgement.choice] += 1
        for pair, words in votes.items():
            first, second = words["first"], words["second"]
            if first != second:
                good, bad = pair if first > second else reversed(pair)
                _add(made, judged, judged.answers.get(good), judged.answers.get(bad), first + second)
            elif first:
                made.left_out["reviewers_disagree"] += 1
            elif words["both"] or words["neither"]:
                made.left_out["equally_good"] += 1
        for judgement in judged.judgements:
            if judgement.correction:
                _add(made, judged, _corrected(judged, judgement), judged.answers.get(judgement.corrected or ""), 1)
    return made


def reviewed_conversations(run: RunDir, until: float | None = None) -> Made:
    """{messages} that end with a correction, or with an answer that was called good by itself.

    `until`: by what was judged before this time, in seconds since the epoch.
    """
    made = Made()
    for judged in _judged(run, made, until):
        asked = prompt_of(judged.exchange)
        corrections = [_corrected(judged, j) for j in judged.judgements if j.correction]
        good = [j for j in judged.judgements if j.choice == "both" and not j.second and not j.correction]
        answers = corrections or ([answer_of(judged.exchange)] if good else [])
        if answers and not isinstance(asked, list):
            made.left_out["not_a_conversation"] += 1
            continue
        for answer in answers:
            tools = {"tools": judged.exchange.tools} if judged.exchange.tools else {}
            made.records.append({"messages": [*(asked or ()), *answer], **tools, "id": judged.exchange.id})
    return made


def judgements_by_item(run: RunDir, until: float | None = None) -> dict[str, list[Judgement]]:
    """What stands of each item, by what was judged before `until`."""
    rows = [row for row in judgements_store(run.path).read().to_pylist() if until is None or row["time"] < until]
    found: dict[str, list[Judgement]] = {}
    for own in standing(rows).values():
        for judgement in own.values():
            found.setdefault(judgement.item, []).append(judgement)
    return found


def _judged(run: RunDir, made: Made, until: float | None) -> Iterator[Judged]:
    """Every item with its judgements; what retention has deleted is counted as left out."""
    captured = {one.id: one for one in exchanges(run.path)}
    _, samples = known_samples(run.path)
    for item, judgements in sorted(judgements_by_item(run, until).items()):
        if item not in captured:
            made.left_out["exchange_deleted"] += 1
            continue
        answers: dict[str, Any] = {}
        for number in {n for j in judgements for n in (j.first, j.second) if n}:
            side: Side | None = samples.get(number)
            answers[number] = side.answer if side else answer_of(captured[number]) if number in captured else None
        yield Judged(captured[item], answers, judgements)


def _corrected(judged: Judged, judgement: Judgement) -> Any:
    """The correction in the form that fits the prompt; tool calls of the answer that was corrected go."""
    chat = isinstance(judged.exchange.messages, list)
    return [{"role": "assistant", "content": judgement.correction}] if chat else judgement.correction


def _add(made: Made, judged: Judged, chosen: Any, rejected: Any, reviewers: int) -> None:
    if not chosen or not rejected:
        made.left_out["exchange_deleted"] += 1
    elif chosen == rejected:
        made.left_out["equal_answers"] += 1
    else:
        one = judged.exchange
        tools = {"tools": one.tools} if one.tools else {}
        record = {"prompt": prompt_of(one), "chosen": chosen, "rejected": rejected, **tools, "id": one.id}
        made.records.append({**record, "reviewers": reviewers})
