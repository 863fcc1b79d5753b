"""Audit a model: ask every question once, judge by the recorded answers, apply the gate, write the report."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ropewalk.cluster.errors import ConfigError, GateError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.evaluation.audit.asking.ask import ask, too_long
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Measure
from ropewalk.jobs.evaluation.audit.config import AuditConfig
from ropewalk.jobs.evaluation.audit.measures.plan import plan
from ropewalk.jobs.evaluation.audit.report.write import write_report
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.open_on_ranks import find_on_ranks, open_on_ranks
from ropewalk.jobs.results.gate import check_names, gate
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.results.score import Score
from ropewalk.jobs.runs.models.gates import MODEL_WEIGHTS
from ropewalk.jobs.training.loop.weights.content_hash import JudgedWeights
from ropewalk.sharding.group import Group, process_group

log = logging.getLogger(__name__)


FOLDER, MODEL = "audit", "model.json"  # the audited checkpoint, recorded by the first attempt


def main(context: JobContext) -> dict[str, object]:
    """Audit the model; return `scores` (by suite and metric), `gate` {passed, failed}, and the path of the report.

    A resumed audit asks only unanswered questions. Raises GateError, with the results, if the gate refuses the model;
    StopRequested.
    """
    config = context.config(AuditConfig)
    with process_group() as group:
        measures = plan(config, context.run.path.parent)
        check_names(config.require, (name for measure in measures for name in measure.score_names()))
        weights = JudgedWeights(context.run, config.model) if group.is_main else None
        opened = open_recorded_model(context, config, group)
        questions = [question for measure in measures for question in measure.questions(opened)]
        check_keys([question.key for question in questions])
        long = set(too_long(opened, questions))
        answers = ask(context, group, opened, [question for question in questions if question.key not in long], config.seed)
        results: dict[str, Any] = {}
        if weights is not None:
            judged_weights = weights.hash(opened.step)
            results = {**report(context, config, opened, judge(measures, answers, long)), MODEL_WEIGHTS: judged_weights}
        group.barrier()
    if results and not results["gate"]["passed"]:
        reasons = "; ".join(condition["words"] for condition in results["gate"]["failed"])
        raise GateError(f"the gate refuses {config.model}: {reasons}", results)
    return results


def report(context: JobContext, config: AuditConfig, opened: OpenModel, judged: Judged) -> dict[str, Any]:
    """Apply the gate, write all files, and return the results."""
    verdict = gate(config.require, judged.scores)
    figures = {"figures": dict(verdict.figures)} if config.require else {}
    context.fence.check()
    written = write_report(context.run, config, judged, verdict.plain(), model=opened.name, step=opened.step)
    log_scores(context, judged.scores, opened.step or 0)
    context.run.event("audited", passed=verdict.passed, failed=[condition.message for condition in verdict.failed])
    return {"scores": nest_scores(judged.scores), "gate": verdict.plain(), "model_step": opened.step, **figures, **written}


def log_scores(context: JobContext, scores: Mapping[str, Score], step: int) -> None:
    """Log the scores as metrics `audit/NAME`, with their standard errors."""
    values = {f"audit/{name}": score.value for name, score in scores.items()}
    errors = {name: score.standard_error for name, score in scores.items()}
    values |= {f"audit/{name}_standard_error": error for name, error in errors.items() if error is not None}
    MetricLog(context).log(step, values)


def open_recorded_model(context: JobContext, config: AuditConfig, group: Group) -> OpenModel:
    """Open the model on every rank; all attempts audit the same checkpoint, whatever its run has saved since."""
    folder, root = context.run.path / FOLDER, context.run.path.parent
    recorded = group.broadcast_object([read_json(folder / MODEL)] if group.is_main else None)[0]
    stored = find_on_ranks(config.model, root, group, recorded["step"] if recorded else None)
    opened = open_on_ranks(stored, group, torch.float32, "never").opened
    if group.is_main and not recorded:
        context.fence.check()
        folder.mkdir(exist_ok=True)
        write_json(folder / MODEL, {"model": opened.name, "step": opened.step})
    return opened


def check_keys(keys: list[str]) -> None:
    """Raise ConfigError if two questions of different suites have the same key."""
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"suites: two questions have the key {twice}; rename a suite")


def judge(measures: list[Measure], answers: Mapping[str, Answer], long: Collection[str]) -> Judged:
    """Return the combined results of all measures. Questions that are too `long` have no answer."""
    combined = Judged(scores={}, items=[], tables={}, notes=[], plots={})
    if long:
        examples = ", ".join(sorted(long)[:5])
        combined.notes.append(f"{len(long)} questions exceed the context of the model and were left out: {examples}")
    for measure in measures:
        judged = measure.judge(answers)
        combined.scores.update(judged.scores)
        combined.items.extend(judged.items)
        combined.tables.update(judged.tables)
        combined.notes.extend(note for note in judged.notes if note not in combined.notes)
        combined.plots.update(judged.plots)
    return combined


def nest_scores(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return scores in the form of results: `suite/metric` becomes {suite: {metric: score}}."""
    tree: dict[str, Any] = {}
    for name, score in scores.items():
        branch = tree
        *parents, last = name.split("/")
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = score.plain()
    return tree
