"""Reports of an evaluation: report.html, report.json, items, and metrics for trackers."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically, write_json
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.evaluation.evaluate.held_out import HELD_OUT
from ropewalk.jobs.evaluation.evaluate.run_tasks import Evaluated
from ropewalk.jobs.results.gate import NORMAL_95
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.results.score import Score
from ropewalk.jobs.runs.models.evaluations import FOLDER, METRICS, REPORT, items_file
from ropewalk.jobs.runs.show.html import Table, page, paragraph


def log_scores(context: JobContext, evaluated: Evaluated) -> None:
    """Log the scores as metrics `evaluation/TASK/METRIC`, with their standard errors."""
    values: dict[str, float] = {}
    for name, task in evaluated.tasks.items():
        for metric, score in task.scores.items():
            values[f"evaluation/{name}/{metric}"] = score.value
            if score.standard_error is not None:
                values[f"evaluation/{name}/{metric}_standard_error"] = score.standard_error
    MetricLog(context).log(evaluated.model_step or 0, values)


def write_items(run: RunDir, items: Iterable[dict[str, Any]]) -> None:
    """Write all items as JSON lines."""
    path = items_file(run.path)
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps(line, ensure_ascii=False, default=str) for line in items)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


def write_report(run: RunDir, config: EvaluateConfig, results: dict[str, Any], evaluated: Evaluated | None) -> Path:
    """Write report.json and report.html into the run's directory and return the page."""
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    metrics: dict[str, dict[str, bool]] = {HELD_OUT: {"loss": False}} if "loss" in results else {}
    if evaluated is not None:
        metrics.update({name: task.higher_is_better for name, task in evaluated.tasks.items()})
    about = {"run": run.id, "model": config.model, "model_step": results.get("model_step"), "seed": config.seed}
    write_json(folder / REPORT, {**about, **results, METRICS: metrics})
    sections = [*_gate(results), *_held_out(results), *(_tasks(evaluated) if evaluated else ()), *_generations(results)]
    title = f"{config.model}, checkpoint of step {about['model_step']}" if about["model_step"] is not None else config.model
    write_atomically(folder / "report.html", page(f"Evaluation of {title}", [paragraph(f"Run {run.id}."), *sections]))
    return folder / "report.html"


def interval_words(score: Score) -> str:
    """Return the 95% interval of a score as text."""
    if score.standard_error is None or not math.isfinite(score.standard_error):
        return "none"
    reach = NORMAL_95 * score.standard_error
    return f"{score.value - reach:.4g} to {score.value + reach:.4g}"


def _gate(results: dict[str, Any]) -> list[str]:
    judged = results.get("gate")
    if judged is None:
        return []
    if judged["passed"]:
        return [paragraph("The gate: passed.")]
    table = Table("The gate: refused", ("condition", "result"))
    for each in judged["failed"]:
        table.row(f"{each['name']} {each['require']}", each["words"])
    return [table.html()]


def _held_out(results: dict[str, Any]) -> list[str]:
    if "loss" not in results:
        return []
    table = Table("Held-out text", ("figure", ">value", ">standard error", ">n"))
    table.row("loss (nats a token)", f"{results['loss']:.4f}", _number(results["standard_error"]), str(results["n"]))
    table.row("bits per byte", f"{results['bits_per_byte']:.4f}", "", "")
    table.row("perplexity", f"{results['perplexity']:.2f}", "", "")
    table.row("loss of a unigram model", f"{results['unigram_loss']:.4f}", "", "")
    calibration = results["token_calibration"]
    table.row(
        "calibration error of the next token",
        f"{calibration['ece']:.4f}",
        _number(calibration["standard_error"]),
        str(calibration["n"]),
    )
    bins = Table("Confidence in the next token, and accuracy", ("from", "to", ">confidence", ">accuracy", ">tokens"))
    for row in calibration["bins"]:
        figures = [f"{row[name]:.3f}" for name in ("confidence", "accuracy")]
        bins.row(f"{row['from']:.1f}", f"{row['to']:.1f}", *figures, str(row["tokens"]))
    return [table.html(), bins.html()]


def _tasks(evaluated: Evaluated) -> list[str]:
    table = Table("Tasks", ("task", "metric", ">value", ">standard error", ">95% interval", ">n", "hash"))
    for name, task in evaluated.tasks.items():
        for metric, score in task.scores.items():
            error, interval = _number(score.standard_error), interval_words(score)
            table.row(name, metric, f"{score.value:.4f}", error, interval, str(score.n), score.hash)
    near_ties = f"{evaluated.near_ties} items were near a tie; their decisions were recomputed exactly."
    notes = [paragraph(near_ties)]
    for name, count in evaluated.truncated.items():
        notes.append(paragraph(f"{name}: {count} texts exceeded the context of the model and lost their beginning."))
    return [table.html(), *notes]


def _generations(results: dict[str, Any]) -> list[str]:
    table = Table("Generated samples", ("prompt", "text"))
    for each in results.get("generations") or ():
        table.row(each["prompt"], each["text"])
    return [table.html()] if table.rows else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
