"""Ask all questions: the ranks share them, and each answer is written down before the next one counts."""

import logging
import math
import time
from collections.abc import Iterator, Sequence

import torch

from ropewalk.cluster.errors import NumericsError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Likelihoods, Question, Task, Writing
from ropewalk.jobs.inference.scoring.generate import generate
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.scorer import Scorer
from ropewalk.jobs.runs.program.finished import Ledger
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

ROUND_SECONDS = 2.0  # between two agreements of the ranks on whether to stop
LEDGER = "answers"


def ask(context: JobContext, group: Group, opened: OpenModel, questions: Sequence[Question], seed: int) -> dict[str, Answer]:
    """Every question's answer by its key, the same on every rank; those of earlier attempts are read.

    Raises StopRequested as soon as the ranks agree on a stop; what was answered stays.
    """
    group.barrier()  # an older group's ranks have lost their right to write by now
    ledger = Ledger(context, LEDGER)
    done = set(group.broadcast_object(sorted(ledger.done) if group.is_main else None))
    todo = sorted((one for one in questions if one.key not in done), key=lambda one: (one.cost, one.key))
    share = todo[group.rank :: group.world_size]
    log.info("%d questions, %d answered before, %d of them for this rank", len(questions), len(questions) - len(todo), len(share))
    answers, left = _answers(opened, share, seed), len(share)
    while True:
        left -= _round(answers, ledger)
        ledger.sync()
        open_everywhere = int(group.all_reduce_sum(torch.tensor(float(left), device=group.device)).item())
        if group.is_main:
            _tell(context, len(questions) - open_everywhere, len(questions))
        if not open_everywhere:
            break
        if group.any(context.stop_requested()):
            raise StopRequested(f"{len(questions) - open_everywhere} of {len(questions)} questions are answered")
    ledger.refresh()
    return {one.key: ledger.done[one.key] for one in questions}


def _round(answers: Iterator[tuple[str, Answer]], ledger: Ledger) -> int:
    """Write down answers for some seconds; returns how many."""
    count, until = 0, time.monotonic() + ROUND_SECONDS
    for key, answer in answers:
        ledger.add(key, answer)
        count += 1
        if time.monotonic() >= until:
            break
    return count


def _answers(opened: OpenModel, questions: Sequence[Question], seed: int) -> Iterator[tuple[str, Answer]]:
    """Answers one by one; those that are packed together come together."""
    for task in questions:
        if isinstance(task, Task):
            yield task.key, task.work()
    asked = [one for one in questions if isinstance(one, Likelihoods)]
    if asked:
        for number, found in Scorer(opened).units([one.requests for one in asked]):
            values = [one.value for one in found]
            if wrong := [value for value in values if not math.isfinite(value)]:
                what = f"the log-likelihood of {asked[number].key} is {wrong[0]}"
                raise NumericsError(f"{opened.name}: {what}, so that it says nothing; its weights are damaged or have diverged")
            yield asked[number].key, {"values": values, "tokens": [x.tokens for x in found], "greedy": [x.greedy for x in found]}
    for one in questions:
        if isinstance(one, Writing):
            (written,) = generate(opened, [one.prompt], one.sampling, seed=seed, numbers=[one.number])
            yield one.key, {"text": written.text, "ended": written.ended}


def too_long(opened: OpenModel, questions: Sequence[Question]) -> list[str]:
    """The keys of questions that the model cannot see: they cannot be asked."""
    return [
        one.key
        for one in questions
        if isinstance(one, Likelihoods) and any(len(request.continuation) > opened.max_length for request in one.requests)
    ]


def _tell(context: JobContext, done: int, total: int) -> None:
    context.fence.check()
    write_json(context.run.progress, {"stage": "ask", "done": done, "total": total, "unit": "questions"}, durable=False)
