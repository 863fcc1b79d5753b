"""Audit a model: ask it everything once, judge by the recorded answers, hold the scores to the gate, write the report."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from ropewalk.cluster.errors import ConfigError, GateError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.evaluation.audit.asking.ask import ask, too_long
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Measure
from ropewalk.jobs.evaluation.audit.config import AuditConfig
from ropewalk.jobs.evaluation.audit.measures.plan import plan
from ropewalk.jobs.evaluation.audit.report.write import write_report
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from ropewalk.jobs.results.gate import check_names, gate
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.results.score import Score
from ropewalk.sharding.group import Group, process_group

log = logging.getLogger(__name__)


FOLDER, MODEL = "audit", "model.json"  # which checkpoint is audited, settled by the first attempt


def main(context: JobContext) -> dict[str, object]:
    """Audit the model; returns `scores` (by suite and metric), `gate` {passed, failed}, and where the report lies.

    A killed audit goes on with what was not answered. Raises GateError, with the results, where the gate refuses the model;
    StopRequested.
    """
    config = context.config(AuditConfig)
    with process_group() as group:
        measures = plan(config, context.run.path.parent)
        check_names(config.require, (name for one in measures for name in one.score_names()))
        opened = settled_model(context, config, group)
        questions = [question for one in measures for question in one.questions(opened)]
        check_keys([question.key for question in questions])
        long = set(too_long(opened, questions))
        answers = ask(context, group, opened, [one for one in questions if one.key not in long], config.seed)
        results: dict[str, Any] = {}
        if group.is_main:
            results = report(context, config, opened, judge(measures, answers, long))
        group.barrier()
    if results and not results["gate"]["passed"]:
        words = "; ".join(one["words"] for one in results["gate"]["failed"])
        raise GateError(f"the gate refuses {config.model}: {words}", results)
    return results


def report(context: JobContext, config: AuditConfig, opened: OpenModel, judged: Judged) -> dict[str, Any]:
    """Hold the scores to the gate, and write everything down; returns the results."""
    verdict = gate(config.require, judged.scores)
    figures = {"figures": dict(verdict.figures)} if config.require else {}
    context.fence.check()
    written = write_report(context.run, config, judged, verdict.plain(), model=opened.name, step=opened.step)
    log_scores(context, judged.scores, opened.step or 0)
    context.run.event("audited", passed=verdict.passed, failed=[condition.message for condition in verdict.failed])
    return {"scores": nested(judged.scores), "gate": verdict.plain(), "model_step": opened.step, **figures, **written}


def log_scores(context: JobContext, scores: Mapping[str, Score], step: int) -> None:
    """Write the scores among the run's metrics, which W&B mirrors: `audit/NAME`, and their standard errors."""
    values = {f"audit/{name}": score.value for name, score in scores.items()}
    errors = {name: score.standard_error for name, score in scores.items()}
    values |= {f"audit/{name}_standard_error": error for name, error in errors.items() if error is not None}
    MetricLog(context).log(step, values)


def settled_model(context: JobContext, config: AuditConfig, group: Group) -> OpenModel:
    """The model on every rank: all attempts audit the same checkpoint of it, whatever its run has saved since."""
    folder, root = context.run.path / FOLDER, context.run.path.parent
    settled = group.broadcast_object([read_json(folder / MODEL)] if group.is_main else None)[0]
    opened = open_model(config.model, root, device=group.device, step=settled["step"] if settled else None)
    steps = group.all_gather_object(opened.step)
    if any(step != steps[0] for step in steps):  # another one was saved while the ranks opened it
        opened = open_model(config.model, root, device=group.device, step=steps[0])
    if group.is_main and not settled:
        context.fence.check()
        folder.mkdir(exist_ok=True)
        write_json(folder / MODEL, {"model": opened.name, "step": opened.step})
    return opened


def check_keys(keys: list[str]) -> None:
    """Raise ConfigError where two suites would give two questions one name."""
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"suites: two questions are called {twice}; give the suites other names")


def judge(measures: list[Measure], answers: Mapping[str, Answer], long: Collection[str]) -> Judged:
    """What all measures found. Questions that are too `long` have no answer."""
    found = Judged(scores={}, items=[], tables={}, notes=[], plots={})
    if long:
        named = ", ".join(sorted(long)[:5])
        found.notes.append(f"{len(long)} questions are longer than the model sees, and were left out: {named}")
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
