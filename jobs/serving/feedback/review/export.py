"""Judgements as training data: preference pairs for `align`, corrected conversations for `finetune`."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.read import CapturedExchange, exchanges
from ropewalk.jobs.serving.feedback.records import FOLDER, judgements_store
from ropewalk.jobs.serving.feedback.review.items import Side
from ropewalk.jobs.serving.feedback.review.judgements import Judgement, current_judgements
from ropewalk.jobs.serving.feedback.review.samples import known_samples
from ropewalk.jobs.serving.feedback.training_data import TrainingData, answer_of, prompt_of

PAIRS, CHATS = "pairs.jsonl", "chats.jsonl"


class ReviewedItem(NamedTuple):
    """An exchange with the answers that were compared and all judgements."""

    exchange: CapturedExchange
    answers: dict[str, Any]  # by id of exchange or sample
    judgements: list[Judgement]


def reviewed_pairs(run: RunDir, until: float | None = None) -> TrainingData:
    """Return {prompt, chosen, rejected}: the majority's preference for each pair of answers, and each correction over its answer.

    `until` limits judgements to those before this time, in seconds since the epoch.
    """
    data = TrainingData()
    for reviewed in _reviewed_items(run, data, until):
        votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # by pair: an item's second answer can change
        for judgement in reviewed.judgements:
            if judgement.second:
                votes[judgement.first, judgement.second][judgement.choice] += 1
        for pair, counts in votes.items():
            first, second = counts["first"], counts["second"]
            if first != second:
                good, bad = pair if first > second else reversed(pair)
                _add_pair(data, reviewed, reviewed.answers.get(good), reviewed.answers.get(bad), first + second)
            elif first:
                data.left_out["reviewers_disagree"] += 1
            elif counts["both"] or counts["neither"]:
                data.left_out["equally_good"] += 1
        for judgement in reviewed.judgements:
            if judgement.correction:
                _add_pair(data, reviewed, _correction(reviewed, judgement), reviewed.answers.get(judgement.corrected or ""), 1)
    return data


def reviewed_conversations(run: RunDir, until: float | None = None) -> TrainingData:
    """Return {messages} that end with a correction, or with an answer that was judged good by itself.

    `until` limits judgements to those before this time, in seconds since the epoch.
    """
    data = TrainingData()
    for reviewed in _reviewed_items(run, data, until):
        prompt = prompt_of(reviewed.exchange)
        corrections = [_correction(reviewed, j) for j in reviewed.judgements if j.correction]
        good = [j for j in reviewed.judgements if j.choice == "both" and not j.second and not j.correction]
        answers = corrections or ([answer_of(reviewed.exchange)] if good else [])
        if answers and not isinstance(prompt, list):
            data.left_out["not_a_conversation"] += 1
            continue
        for answer in answers:
            data.add(reviewed.exchange, messages=[*(prompt or ()), *answer])
    return data


def judgements_by_item(run: RunDir, until: float | None = None) -> dict[str, list[Judgement]]:
    """Return the current judgements of each item, among those before `until`."""
    rows = [row for row in judgements_store(run.path / FOLDER).read().to_pylist() if until is None or row["time"] < until]
    by_item: dict[str, list[Judgement]] = {}
    for of_reviewer in current_judgements(rows).values():
        for judgement in of_reviewer.values():
            by_item.setdefault(judgement.item, []).append(judgement)
    return by_item


def _reviewed_items(run: RunDir, data: TrainingData, until: float | None) -> Iterator[ReviewedItem]:
    """Yield every item with its judgements; items deleted by retention are counted as left out."""
    by_item = judgements_by_item(run, until)
    judged = {number for judgements in by_item.values() for j in judgements for number in (j.item, j.first, j.second)}
    captured = {exchange.id: exchange for exchange in exchanges(run.path) if exchange.id in judged}
    _, samples = known_samples(run.path)
    for item, judgements in sorted(by_item.items()):
        if item not in captured:
            data.left_out["exchange_deleted"] += 1
            continue
        answers: dict[str, Any] = {}
        for number in {n for j in judgements for n in (j.first, j.second) if n}:
            side: Side | None = samples.get(number)
            answers[number] = side.answer if side else answer_of(captured[number]) if number in captured else None
        yield ReviewedItem(captured[item], answers, judgements)


def _correction(reviewed: ReviewedItem, judgement: Judgement) -> Any:
    """Return the correction in the form of the prompt, without tool calls of the corrected answer."""
    chat = isinstance(reviewed.exchange.messages, list)
    return [{"role": "assistant", "content": judgement.correction}] if chat else judgement.correction


def _add_pair(data: TrainingData, reviewed: ReviewedItem, chosen: Any, rejected: Any, reviewers: int) -> None:
    if not chosen or not rejected:
        data.left_out["exchange_deleted"] += 1
    elif chosen == rejected:
        data.left_out["equal_answers"] += 1
    else:
        exchange = reviewed.exchange
        data.add(exchange, prompt=prompt_of(exchange), chosen=chosen, rejected=rejected, reviewers=reviewers)
