"""Measure a model (loss on held-out text, tasks, samples) and apply a gate."""

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
from ropewalk.jobs.runs.models.gates import MODEL_WEIGHTS
from ropewalk.jobs.training.loop.weights.content_hash import JudgedWeights
from ropewalk.sharding.group import Group, process_group


def main(context: JobContext) -> dict[str, object]:
    """Measure the model; return loss, bits per byte and perplexity of `data`, `scores` of `tasks`, and the result of the gate.

    Raises GateError, with the results, if the gate refuses the model.
    """
    config = context.config(EvaluateConfig)
    with process_group(config.parallel) as group:
        return evaluate(context, config, group)


def evaluate(context: JobContext, config: EvaluateConfig, group: Group) -> dict[str, Any]:
    """Return the results of an evaluation: equal at every number of ranks up to rounding, with identical decisions."""
    judged = JudgedWeights(context.run, config.model) if group.is_main else None
    results, items = score_data(context, config, group) if config.data is not None else ({}, [])
    tasks = run_tasks(context, config, group) if config.tasks else None
    if judged is None:
        return {}
    if tasks is not None:
        results = {**results, **tasks.results()}
        items += [line for task in tasks.tasks.values() for line in task.items]
    results[MODEL_WEIGHTS] = judged.hash(results["model_step"])
    verdict = None
    if config.require:
        scores = _scores_by_name(config, results, tasks)
        check_names(config.require, scores)
        verdict = gate(config.require, scores)
        results["gate"], results["figures"] = verdict.plain(), dict(verdict.figures)
    context.fence.check()
    if tasks is not None:
        log_scores(context, tasks)
    write_items(context.run, items)
    write_report(context.run, config, results, tasks)
    write_readable(context.run.path, results, tasks)
    context.run.event("evaluated", **{key: results[key] for key in ("loss", "n") if key in results}, tasks=list(config.tasks))
    if verdict is not None and not verdict.passed:
        raise GateError(f"the gate refuses {config.model}: {verdict.words}", results)
    return results


def _scores_by_name(config: EvaluateConfig, results: dict[str, Any], tasks: Evaluated | None) -> dict[str, Score]:
    """Return all scores by the names that a gate may use."""
    scores = by_name(tasks.tasks) if tasks is not None else {}
    if "loss" in results:
        settings_hash = hash_of(config.data, config.split, config.seq_len, config.max_sequences)
        loss, error = results["loss"], results["standard_error"]
        for name in ("loss", "bits_per_byte", "perplexity"):
            # first-order error propagation: bits per byte are a multiple of the loss, perplexity its exponential
            slope = results[name] if name == "perplexity" else results[name] / loss if loss else 1.0
            standard_error = None if error is None else error * slope
            scores[name] = Score(value=results[name], standard_error=standard_error, n=results["n"], hash=settings_hash)
    return scores
