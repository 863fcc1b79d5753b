"""The items of an `evaluate` run of the same model: searched for in the training data, and how sure it was, against right."""

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
HELD_OUT = "held_out"  # sequences of a data set's split, which are no items of a task
FIRST = ("acc", "exact_match", "f1")  # the metric that is told apart on clean and contaminated items
_EXAMPLES_END = "\n\n"  # what stands between few-shot examples and the item


def read_evaluation(name: str, root: Path, model: str) -> list[dict[str, Any]]:
    """The items of a finished evaluation. Raises ConfigError where there are none, or they are another model's."""
    run = RunDir(root / name) if (root / name / "run.yaml").is_file() else find_run(name)
    rows = [row for row in read_lines(run.path / ITEMS) if "item" in row and row.get("task", HELD_OUT) != HELD_OUT]
    if not rows:
        raise ConfigError(f"evaluation: {name} has no items in {ITEMS}; name a finished run of evaluate with `tasks`")
    other = str((run.record.get("config") or {}).get("model"))
    if other != model:
        raise ConfigError(f"evaluation: {name} evaluated {other}, and this audit is of {model}; evaluate that one")
    return rows


class Evaluated:
    """Nothing is asked of the model: another run has asked it. Its decisions are items of this audit."""

    def __init__(self, rows: list[dict[str, Any]], bins: int, seed: int) -> None:
        self.bins, self.seed = bins, seed
        self.tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            self.tasks[str(row["task"])].append(row)

    @property
    def contents(self) -> list[Item]:
        """What each item says, without examples before it."""
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
        """The calibration of each task of multiple choice."""
        return [f"{_name(task)}/{kind}" for task, rows in self.tasks.items() if _choices(rows) for kind in ("ece", "brier")]

    def questions(self, opened: OpenModel) -> list[Question]:
        """None."""
        return []

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """The items with their value, and the calibration of each task."""
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
        asked = hash_of([row.get("hash") for row in self.tasks[task]])

        def ece(part: Any) -> float:
            return calibration_error(part, self.bins)

        judged.scores[f"{_name(task)}/ece"] = statistic_score(items, ece, hash=asked, seed=self.seed)
        judged.scores[f"{_name(task)}/brier"] = mean_score([item["brier"] for item in items], hash=asked)
        judged.tables[f"Calibration on {task}: sure against right"] = rows = reliability(items, self.bins)
        judged.plots.setdefault("reliability of tasks", {})[f"reliability on {task}"] = rows


def _choices(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """{confidence, value, brier} of each item whose answers are log-likelihoods of options, one of which is right."""
    found = []
    for row in rows:
        values, target = [_log_likelihood(answer) for answer in row.get("answers") or []], row.get("target")
        right = target if isinstance(target, int) and not isinstance(target, bool) else None
        if right is None or len(values) < 2 or None in values or not 0 <= right < len(values):
            return []
        each = shares([value for value in values if value is not None])
        chosen = each.index(max(each))
        found.append({"confidence": each[chosen], "value": float(chosen == right), "brier": brier(each, right)})
    return found


def _log_likelihood(answer: Any) -> float | None:
    value = answer[0] if isinstance(answer, list) and answer else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _name(task: str) -> str:
    return f"evaluation/{task}"


def _key(row: Mapping[str, Any]) -> str:
    return f"evaluation/{row['task']}:{row['item']}"
