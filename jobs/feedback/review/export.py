"""Judgements as training data: preference pairs for `align`, corrected conversations for `finetune`."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from cluster.run.directory import RunDir
from jobs.feedback.read import Captured, exchanges
from jobs.feedback.review.items import Side
from jobs.feedback.review.judgements import Judgement, judgements_store, standing
from jobs.feedback.review.samples import known_samples
from jobs.feedback.training_data import Made, answer_of, prompt_of

PAIRS, CHATS = "pairs.jsonl", "chats.jsonl"


class Judged(NamedTuple):
    """An item with all that was said of it."""

    exchange: Captured
    answers: dict[str, Any]  # by the ids of exchange and sample
    judgements: list[Judgement]


def reviewed_pairs(run: RunDir) -> Made:
    """{prompt, chosen, rejected}: what most reviewers of a pair prefer, and each correction before what it corrects."""
    made = Made()
    for judged in _judged(run, made):
        votes = Counter(j.choice for j in judged.judgements if j.second)
        first, second = votes["first"], votes["second"]
        if first or second:
            one = next(j for j in judged.judgements if j.second)
            if first == second:
                made.left_out["reviewers_disagree"] += 1
            else:
                good, bad = (one.first, one.second) if first > second else (one.second, one.first)
                _add(made, judged, judged.answers.get(good or ""), judged.answers.get(bad or ""), first + second)
        elif votes["both"] or votes["neither"]:
            made.left_out["equally_good"] += 1
        for judgement in judged.judgements:
            if judgement.correction:
                _add(made, judged, _corrected(judged, judgement), judged.answers.get(judgement.corrected or ""), 1)
    return made


def reviewed_conversations(run: RunDir) -> Made:
    """{messages} that end with a correction, or with an answer that was called good by itself."""
    made = Made()
    for judged in _judged(run, made):
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


def _judged(run: RunDir, made: Made) -> Iterator[Judged]:
    """Every item with its judgements; what retention has deleted is counted as left out."""
    by_item: dict[str, list[Judgement]] = {}
    for own in standing(judgements_store(run.path).read().to_pylist()).values():
        for judgement in own.values():
            by_item.setdefault(judgement.item, []).append(judgement)
    captured = {one.id: one for one in exchanges(run.path)}
    _, samples = known_samples(run.path)
    for item, judgements in sorted(by_item.items()):
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
