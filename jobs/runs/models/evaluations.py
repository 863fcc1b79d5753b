"""Evaluations that were made, found by what a user names: a run of evaluate, a model, a group of them; and their items."""

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
    """A run of evaluate that is done."""

    run: RunDir

    @cached_property
    def items(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Its items by task and number."""
        return {(line["task"], int(line["item"])): line for line in read_lines(items_file(self.run.path))}

    @cached_property
    def report(self) -> Mapping[str, Any]:
        """The content of report.json."""
        return read_json(self.run.path / FOLDER / REPORT) or {}

    @property
    def model(self) -> str:
        """The model as the evaluation names it."""
        return str(self.run.record["config"]["model"])

    def score(self, task: str, metric: str) -> Score | None:
        """A score of a task."""
        found = (self.report.get("scores") or {}).get(task, {}).get(metric)
        return Score.of(found) if found else None

    @property
    def step(self) -> int | None:
        """The step of the checkpoint that was evaluated; None of a directory."""
        found = self.report.get("model_step")
        return int(found) if found is not None else None

    @property
    def seed(self) -> int:
        """The seed of the run that trained the model; of a directory, the evaluation's own."""
        try:
            trained = find_model(self.model, self.run.path.parent)
        except ConfigError:  # it is gone by now
            trained = None
        config = trained.record["config"] if isinstance(trained, RunDir) else self.run.record["config"]
        return int(config.get("seed") or 0)


def items_file(run: Path) -> Path:
    """The file of all items of an evaluation: a JSON object a line."""
    return run / FOLDER / ITEMS


def find_evaluations(ref: str, root: Path | None = None) -> list[Evaluation]:
    """The evaluations that a user names: words with commas between them, each a run of evaluate, a model (a run or a directory:
    its newest evaluation), or the name or W&B group of several runs of evaluate. Raises ConfigError.
    """
    every = [Evaluation(run=run) for run in (RunDir.all(root) if root else all_runs()) if items_file(run.path).is_file()]
    found = [one for word in ref.split(",") if word for one in _find(word.strip(), every, root)]
    if not found:
        raise ConfigError(f"{ref!r} names no evaluation; give a run of evaluate, a model that was evaluated, or a group")
    return found


def _find(word: str, every: Sequence[Evaluation], root: Path | None) -> list[Evaluation]:
    named = [one for one in every if word in _names(one.run)]
    if named:
        return named
    try:
        found, step = find_checkpoint(word, root)
    except ConfigError as error:
        raise ConfigError(f"{word!r} is no evaluation, no group of them, and no model: {error}") from None
    if isinstance(found, RunDir):
        if items_file(found.path).is_file():
            return [Evaluation(run=found)]
        if found.record.get("job") == "evaluate":
            raise ConfigError(f"{found.id} has no items yet: it is not over, or evaluated nothing")
    mine = [one for one in every if names_model(one.model, found) and (step is None or one.step == step)]
    if not mine:
        raise ConfigError(f"{word} was not evaluated yet: `ropewalk run evaluate model={word} tasks=[...]`")
    return [max(mine, key=lambda one: items_file(one.run.path).stat().st_mtime_ns)]


def _names(run: RunDir) -> set[str | None]:
    config = run.record.get("config") or {}
    return {config.get("name"), (config.get("wandb") or {}).get("group")} - {None}
