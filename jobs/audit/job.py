"""Audit a model: ask it everything once, judge by the recorded answers, hold the scores to the gate, write the report."""

import logging
from collections.abc import Mapping
from typing import Any

from cluster.errors import ConfigError
from cluster.run.context import JobContext
from jobs.audit.asking.ask import ask
from jobs.audit.asking.question import Answer, Judged, Measure
from jobs.audit.config import AuditConfig
from jobs.audit.measures.plan import plan
from jobs.audit.report.write import write_report
from jobs.inference.open_model import open_model
from jobs.scores.gate import check_names, gate
from jobs.scores.score import Score
from sharding.group import process_group

log = logging.getLogger(__name__)


def main(context: JobContext) -> dict[str, object]:
    """Audit the model; returns `scores` (by suite and metric), `gate` {passed, failed}, and where the report lies.

    A killed audit goes on with what was not answered. Raises StopRequested.
    """
    config = context.config(AuditConfig)
    with process_group() as group:
        measures = plan(config, context.run.path.parent)
        check_names(config.require, (name for one in measures for name in one.score_names()))
        opened = open_model(config.model, context.run.path.parent, device=group.device)
        questions = [question for one in measures for question in one.questions(opened)]
        check_keys([question.key for question in questions])
        answers = ask(context, group, opened, questions, config.seed)
        results: dict[str, object] = {}
        if group.is_main:
            judged = judge(measures, answers)
            verdict = gate(config.require, judged.scores).plain()
            context.fence.check()
            written = write_report(context.run, config, judged, verdict, model=opened.name, step=opened.step)
            results = {"scores": nested(judged.scores), "gate": verdict, "model_step": opened.step, **written}
            context.run.event("audited", passed=verdict["passed"], failed=[one["words"] for one in verdict["failed"]])
        group.barrier()
    return results


def check_keys(keys: list[str]) -> None:
    """Raise ConfigError where two suites would give two questions one name."""
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"suites: two questions are called {twice}; give the suites other names")


def judge(measures: list[Measure], answers: Mapping[str, Answer]) -> Judged:
    """What all measures found."""
    found = Judged(scores={}, items=[], tables={}, notes=[], plots={})
    for one in measures:
        own = one.judge(answers)
        found.scores.update(own.scores)
        found.items.extend(own.items)
        found.tables.update(own.tables)
        found.notes.extend(note for note in own.notes if note not in found.notes)
        found.plots.update(own.plots)
    return found


def nested(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Scores as results hold them: `suite/metric` is {suite: {metric: score}}."""
    found: dict[str, Any] = {}
    for name, score in scores.items():
        place = found
        *parents, last = name.split("/")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = score.plain()
    return found
