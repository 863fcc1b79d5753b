"""Measure a model: loss on held-out text, tasks, sample generations; and judge it by a gate."""

from typing import Any

from ropewalk.cluster.errors import GateError
from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.evaluation.evaluate.held_out import score_data
from ropewalk.jobs.evaluation.evaluate.readable import write_readable
from ropewalk.jobs.evaluation.evaluate.report import log_scores, write_items, write_report
from ropewalk.jobs.evaluation.evaluate.run_tasks import Evaluated, run_tasks
from ropewalk.jobs.evaluation.tasks.scoring import by_name
from ropewalk.jobs.results.gate import check_names, gate
from ropewalk.jobs.results.score import Score, hash_of
from ropewalk.sharding.group import Group, process_group


def main(context: JobContext) -> dict[str, object]:
    """Measure the model; returns loss, bits per byte and perplexity of `data`, `scores` of `tasks`, and what became of the gate.

    Raises GateError, with the results, where the gate refuses.
    """
    config = context.config(EvaluateConfig)
    with process_group(config.parallel) as group:
        return evaluate(context, config, group)


def evaluate(context: JobContext, config: EvaluateConfig, group: Group) -> dict[str, Any]:
    """The results of an evaluation, the same at every number of ranks up to rounding, and its decisions exactly."""
    results, items = score_data(context, config, group) if config.data is not None else ({}, [])
    tasks = run_tasks(context, config, group) if config.tasks else None
    if not group.is_main:
        return {}
    if tasks is not None:
        results = {**results, **tasks.results()}
        items += [line for task in tasks.tasks.values() for line in task.items]
    judged = None
    if config.require:
        scores = _named(config, results, tasks)
        check_names(config.require, scores)
        judged = gate(config.require, scores)
        results["gate"], results["figures"] = judged.plain(), dict(judged.figures)
    context.fence.check()
    if tasks is not None:
        log_scores(context, tasks)
    write_items(context.run, items)
    write_report(context.run, config, results, tasks)
    write_readable(context.run.path, results, tasks)
    context.run.event("evaluated", **{key: results[key] for key in ("loss", "n") if key in results}, tasks=list(config.tasks))
    if judged is not None and not judged.passed:
        raise GateError(f"the gate refuses {config.model}: {judged.words}", results)
    return results


def _named(config: EvaluateConfig, results: dict[str, Any], tasks: Evaluated | None) -> dict[str, Score]:
    """All scores by the names that a gate may use."""
    found = by_name(tasks.tasks) if tasks is not None else {}
    if "loss" in results:
        asked = hash_of(config.data, config.split, config.seq_len, config.max_sequences)
        loss, error = results["loss"], results["standard_error"]
        for name in ("loss", "bits_per_byte", "perplexity"):
            # of the loss to first order: bits per byte are a multiple of it, perplexity is its exponential
            slope = results[name] if name == "perplexity" else results[name] / loss if loss else 1.0
            own = None if error is None else error * slope
            found[name] = Score(value=results[name], standard_error=own, n=results["n"], hash=asked)
    return found
