"""Reports of an evaluation: report.html, report.json, items, and metrics for trackers."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ropewalk.cluster.page import Table, paragraph, picture
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
from ropewalk.jobs.runs.show.plots import as_png, draw_reliability
from ropewalk.jobs.runs.show.run_page import gate_sections, subject_of, write_run_page

_MEANINGS = {
    "loss": "nats per token; n: sequences. Validation during training scores fewer sequences of the same split",
    "bits_per_byte": "the same loss per byte of text, comparable between tokenizers",
    "perplexity": "e to the power of the loss",
    "unigram_loss": "the loss of guessing each token by its frequency in the training text alone; a useful model is well below",
    "token_calibration": "expected calibration error, the mean distance between confidence and accuracy; n: tokens",
}


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
    sections = [
        *gate_sections(results.get("gate")),
        *_held_out(results),
        *(_tasks(evaluated) if evaluated else ()),
        *_generations(results),
    ]
    facts = {"model": config.model, "step of the model": about["model_step"], "data": _data_names(config)}
    return write_run_page(run, folder / "report.html", "Evaluation", sections, subject=subject_of(config.model), facts=facts)


def _data_names(config: EvaluateConfig) -> str:
    sources = config.data if isinstance(config.data, list) else [config.data]
    return ", ".join(str(getattr(source, "path", source)) for source in sources if source is not None)


def interval_words(score: Score) -> str:
    """Return the 95% interval of a score as text."""
    if score.standard_error is None or not math.isfinite(score.standard_error):
        return "none"
    reach = NORMAL_95 * score.standard_error
    return f"{score.value - reach:.4g} to {score.value + reach:.4g}"


def _held_out(results: dict[str, Any]) -> list[str]:
    if "loss" not in results:
        return []
    table = Table("Held-out text", ("figure", ">value", ">± SE", ">n"))
    calibration = results["token_calibration"]
    table.row("loss", f"{results['loss']:.4f}", _number(results["standard_error"]), f"{results['n']:,}")
    table.row("bits_per_byte", f"{results['bits_per_byte']:.4f}", "", "")
    table.row("perplexity", f"{results['perplexity']:.2f}", "", "")
    table.row("unigram_loss", f"{results['unigram_loss']:.4f}", "", "")
    error = _number(calibration["standard_error"])
    table.row("token_calibration", f"{calibration['ece']:.4f}", error, f"{calibration['n']:,}")
    meanings = [paragraph(f"{name}: {text}.", "note") for name, text in _MEANINGS.items()]
    drawn = as_png(lambda axis: draw_reliability(axis, calibration["bins"]))
    note = "bars on the dashed line: right as often as the model is confident"
    return [table.html(), *meanings, picture("Calibration of the next token", drawn, note)]


def _tasks(evaluated: Evaluated) -> list[str]:
    table = Table("Tasks", ("task", "metric", ">value", ">± SE", ">95% interval", ">n", "hash"))
    for name, task in evaluated.tasks.items():
        for metric, score in task.scores.items():
            error, interval = _number(score.standard_error), interval_words(score)
            table.row(name, metric, f"{score.value:.4f}", error, interval, f"{score.n:,}", score.hash)
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
