"""Completed evaluations and their items, found by a run of evaluate, a model, or a group of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, read_lines
from ropewalk.jobs.results.score import Score
from ropewalk.jobs.runs.models.find_model import find_checkpoint, find_model, names_model
from ropewalk.jobs.runs.show.status import all_runs

FOLDER = "evaluation"  # in the run's directory
ITEMS, REPORT = "items.jsonl", "report.json"
METRICS = "metrics"  # in report.json: {task: {metric: higher is better}}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A completed run of evaluate."""

    run: RunDir

    @cached_property
    def items(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Items by task and number."""
        return {(line["task"], int(line["item"])): line for line in read_lines(items_file(self.run.path))}

    @cached_property
    def report(self) -> Mapping[str, Any]:
        """Content of report.json."""
        return read_json(self.run.path / FOLDER / REPORT) or {}

    @property
    def model(self) -> str:
        """Reference of the evaluated model."""
        return str(self.run.record["config"]["model"])

    def score(self, task: str, metric: str) -> Score | None:
        score = (self.report.get("scores") or {}).get(task, {}).get(metric)
        return Score.of(score) if score else None

    @property
    def step(self) -> int | None:
        """Step of the evaluated checkpoint; None for a directory."""
        step = self.report.get("model_step")
        return int(step) if step is not None else None

    @property
    def seed(self) -> int:
        """Seed of the run that trained the model; for a directory, seed of the evaluation."""
        try:
            trained = find_model(self.model, self.run.path.parent)
        except ConfigError:  # the run was deleted
            trained = None
        config = trained.record["config"] if isinstance(trained, RunDir) else self.run.record["config"]
        return int(config.get("seed") or 0)


def items_file(run: Path) -> Path:
    """Return the file of all items of an evaluation, one JSON object per line."""
    return run / FOLDER / ITEMS


def find_evaluations(ref: str, root: Path | None = None) -> list[Evaluation]:
    """Find evaluations by comma-separated references. Raises ConfigError.

    Each is a run of evaluate, a model (a run or directory; its newest evaluation), or the name or W&B group of several runs of
    evaluate.
    """
    every = [Evaluation(run=run) for run in (RunDir.all(root) if root else all_runs()) if items_file(run.path).is_file()]
    evaluations = [each for part in ref.split(",") if part for each in _find(part.strip(), every, root)]
    if not evaluations:
        raise ConfigError(f"{ref!r} names no evaluation; use a run of evaluate, a model that was evaluated, or a group")
    return evaluations


def _find(ref: str, every: Sequence[Evaluation], root: Path | None) -> list[Evaluation]:
    group = [each for each in every if ref in _names(each.run)]
    if group:
        return group
    try:
        model, step = find_checkpoint(ref, root)
    except ConfigError as error:
        raise ConfigError(f"{ref!r} is neither an evaluation, nor a group of evaluations, nor a model: {error}") from None
    if isinstance(model, RunDir):
        if items_file(model.path).is_file():
            return [Evaluation(run=model)]
        if model.record.get("job") == "evaluate":
            raise ConfigError(f"{model.id} has no items yet: it has not ended, or evaluated nothing")
    evaluations = [each for each in every if names_model(each.model, model) and (step is None or each.step == step)]
    if not evaluations:
        raise ConfigError(f"{ref} was not evaluated yet: `ropewalk run evaluate model={ref} tasks=[...]`")
    return [max(evaluations, key=lambda each: items_file(each.run.path).stat().st_mtime_ns)]


def _names(run: RunDir) -> set[str | None]:
    config = run.record.get("config") or {}
    return {config.get("name"), (config.get("wandb") or {}).get("group")} - {None}
