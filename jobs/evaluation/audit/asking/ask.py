"""Answer all questions: the ranks share them and record each answer."""

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

ROUND_SECONDS = 2.0  # interval at which the ranks agree on stopping
LEDGER = "answers"


def ask(context: JobContext, group: Group, opened: OpenModel, questions: Sequence[Question], seed: int) -> dict[str, Answer]:
    """Return every question's answer by key, equal on every rank; answers of earlier attempts are reused.

    Raises StopRequested as soon as the ranks agree to stop; recorded answers are kept.
    """
    group.barrier()  # after this, ranks of an older group can no longer write
    ledger = Ledger(context, LEDGER)
    done = set(group.broadcast_object(sorted(ledger.done) if group.is_main else None))
    todo = sorted(
        (question for question in questions if question.key not in done), key=lambda question: (question.cost, question.key)
    )
    share = todo[group.rank :: group.world_size]
    log.info("%d questions, %d answered before, %d of them for this rank", len(questions), len(questions) - len(todo), len(share))
    answers, left = _answers(opened, share, seed), len(share)
    while True:
        left -= _round(answers, ledger)
        ledger.sync()
        open_everywhere = int(group.all_reduce_sum(torch.tensor(float(left), device=group.device)).item())
        if group.is_main:
            _report_progress(context, len(questions) - open_everywhere, len(questions))
        if not open_everywhere:
            break
        if group.any(context.stop_requested()):
            raise StopRequested(f"{len(questions) - open_everywhere} of {len(questions)} questions are answered")
    ledger.refresh()
    return {question.key: ledger.done[question.key] for question in questions}


def _round(answers: Iterator[tuple[str, Answer]], ledger: Ledger) -> int:
    """Record answers for some seconds and return their number."""
    count, until = 0, time.monotonic() + ROUND_SECONDS
    for key, answer in answers:
        ledger.add(key, answer)
        count += 1
        if time.monotonic() >= until:
            break
    return count


def _answers(opened: OpenModel, questions: Sequence[Question], seed: int) -> Iterator[tuple[str, Answer]]:
    """Yield answers one by one; questions packed together are answered together."""
    for task in questions:
        if isinstance(task, Task):
            yield task.key, task.work()
    likelihoods = [question for question in questions if isinstance(question, Likelihoods)]
    if likelihoods:
        for number, unit in Scorer(opened).units([question.requests for question in likelihoods]):
            values = [likelihood.value for likelihood in unit]
            if invalid := [value for value in values if not math.isfinite(value)]:
                problem = f"the log-likelihood of {likelihoods[number].key} is {invalid[0]}"
                raise NumericsError(f"{opened.name}: {problem}; its weights are damaged or have diverged")
            yield (
                likelihoods[number].key,
                {"values": values, "tokens": [x.tokens for x in unit], "greedy": [x.greedy for x in unit]},
            )
    for question in questions:
        if isinstance(question, Writing):
            (written,) = generate(opened, [question.prompt], question.sampling, seed=seed, numbers=[question.number])
            yield question.key, {"text": written.text, "ended": written.ended}


def too_long(opened: OpenModel, questions: Sequence[Question]) -> list[str]:
    """Return the keys of questions that exceed the model's context and cannot be asked."""
    return [
        question.key
        for question in questions
        if isinstance(question, Likelihoods)
        and any(len(request.continuation) > opened.max_length for request in question.requests)
    ]


def _report_progress(context: JobContext, done: int, total: int) -> None:
    context.fence.check()
    write_json(context.run.progress, {"stage": "ask", "done": done, "total": total, "unit": "questions"}, durable=False)
