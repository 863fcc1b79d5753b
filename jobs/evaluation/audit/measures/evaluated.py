"""Items of an `evaluate` run of the same model: searched for in the training data, and their calibration."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Question
from ropewalk.jobs.evaluation.audit.measures.calibration import brier, calibration_error, reliability, shares
from ropewalk.jobs.evaluation.audit.training_data.items import Item
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.results.score import hash_of, mean_score, statistic_score
from ropewalk.jobs.runs.show.status import find_run

ITEMS = "evaluation/items.jsonl"
HELD_OUT = "held_out"  # sequences of a data set, not items of a task
FIRST = ("acc", "exact_match", "f1")  # preferred metrics for clean and contaminated items
_EXAMPLES_END = "\n\n"  # separator between few-shot examples and the item


def read_evaluation(name: str, root: Path, model: str) -> list[dict[str, Any]]:
    """Return the items of a finished evaluation. Raises ConfigError if it has none or is of another model."""
    run = RunDir(root / name) if (root / name / "run.yaml").is_file() else find_run(name)
    rows = [row for row in read_lines(run.path / ITEMS) if "item" in row and row.get("task", HELD_OUT) != HELD_OUT]
    if not rows:
        raise ConfigError(f"evaluation: {name} has no items in {ITEMS}; name a finished run of evaluate with `tasks`")
    other = str((run.record.get("config") or {}).get("model"))
    if other != model:
        raise ConfigError(f"evaluation: {name} evaluated {other}, but this audit is of {model}; evaluate the same model")
    return rows


class Evaluated:
    """Items answered in another run; the model is not asked again."""

    def __init__(self, rows: list[dict[str, Any]], bins: int, seed: int) -> None:
        self.bins, self.seed = bins, seed
        self.tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            self.tasks[str(row["task"])].append(row)

    @property
    def contents(self) -> list[Item]:
        """The text of each item, without few-shot examples."""
        return [
            Item(
                measure=_name(task),
                key=_key(row),
                texts=tuple(filter(None, (str(row.get("prompt") or "").rpartition(_EXAMPLES_END)[2], *map(str, row["options"])))),
            )
            for task, rows in self.tasks.items()
            for row in rows
        ]

    def score_names(self) -> list[str]:
        """Return the names of the calibration scores of each multiple-choice task."""
        return [f"{_name(task)}/{kind}" for task, rows in self.tasks.items() if _choices(rows) for kind in ("ece", "brier")]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return no question."""
        return []

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return the items with their values, and the calibration of each task."""
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        for task, rows in self.tasks.items():
            metric = next((name for name in FIRST if all(name in row["values"] for row in rows)), None)
            for row in rows if metric is not None else []:
                item = {"measure": _name(task), "key": _key(row), "value": float(row["values"][metric]), "group": _key(row)}
                judged.items.append({**item, "hash": row.get("hash")})
            if items := _choices(rows):
                self._calibrate(judged, task, items)
        return judged

    def _calibrate(self, judged: Judged, task: str, items: list[dict[str, Any]]) -> None:
        content_hash = hash_of([row.get("hash") for row in self.tasks[task]])

        def ece(part: Any) -> float:
            return calibration_error(part, self.bins)

        judged.scores[f"{_name(task)}/ece"] = statistic_score(items, ece, hash=content_hash, seed=self.seed)
        judged.scores[f"{_name(task)}/brier"] = mean_score([item["brier"] for item in items], hash=content_hash)
        judged.tables[f"Calibration on {task}: confidence against accuracy"] = rows = reliability(items, self.bins)
        judged.plots.setdefault("reliability of tasks", {})[f"reliability on {task}"] = rows


def _choices(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return {confidence, value, brier} of each item if the answers are log-likelihoods of options, one of them correct."""
    choices = []
    for row in rows:
        values, target = [_log_likelihood(answer) for answer in row.get("answers") or []], row.get("target")
        correct = target if isinstance(target, int) and not isinstance(target, bool) else None
        if correct is None or len(values) < 2 or None in values or not 0 <= correct < len(values):
            return []
        each = shares([value for value in values if value is not None])
        chosen = each.index(max(each))
        choices.append({"confidence": each[chosen], "value": float(chosen == correct), "brier": brier(each, correct)})
    return choices


def _log_likelihood(answer: Any) -> float | None:
    value = answer[0] if isinstance(answer, list) and answer else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _name(task: str) -> str:
    return f"evaluation/{task}"


def _key(row: Mapping[str, Any]) -> str:
    return f"evaluation/{row['task']}:{row['item']}"
