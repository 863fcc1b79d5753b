"""Scores of tasks: lm-eval computes every figure, and each gets its standard error, n, hash, and items."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.jobs.results.score import Score, hash_of, mean_score, statistic_score

_PLAIN_FILTER = "none"
_FIRST = ("acc", "exact_match", "f1", "bits_per_byte", "perplexity")  # a task's own figure, where it has several
# keys of a task that say where its items lie, how it is described, or hold functions: what they do is in the prompts
_INCIDENTAL = {"dataset_path", "dataset_name", "dataset_kwargs", "metadata", "tag", "group", "custom_dataset", "process_docs"}


@dataclass(kw_only=True)
class TaskScores:
    """What became of one task."""

    scores: dict[str, Score]  # by metric
    higher_is_better: dict[str, bool]
    items: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first(self) -> str:
        """The metric that stands for the task."""
        return first_metric(self.scores)


def first_metric(scores: Mapping[str, Any]) -> str:
    """The metric that stands for a task, of its scores by metric."""
    return next((name for name in _FIRST if name in scores), next(iter(scores)))


def evaluate_tasks(
    model: Any, tasks: Mapping[str, Any], *, limit: int | None, chat: bool, turns: bool, system: str | None
) -> Any:
    """What lm-eval makes of the tasks, with every item."""
    from lm_eval.evaluator import evaluate

    return evaluate(
        lm=model,
        task_dict={"tasks": dict(tasks)},
        limit=limit,
        bootstrap_iters=0,  # its errors are not clustered, and take minutes
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat and turns,
        system_instruction=system,
    )


def task_scores(name: str, task: Any, evaluated: Mapping[str, Any], seed: int) -> TaskScores:
    """The scores of one task, and its items by their number."""
    samples = sorted(evaluated["samples"][name], key=lambda sample: (sample["filter"], sample["doc_id"]))
    figures = evaluated["results"][name]
    asked = hash_of(_definition(task), [[sample["arguments"], sample["target"]] for sample in samples])
    aggregations = task.aggregation()
    filters = dict.fromkeys(sample["filter"] for sample in samples)
    found = TaskScores(scores={}, higher_is_better={}, items=[])
    for chosen in filters:
        rows = [sample for sample in samples if sample["filter"] == chosen]
        for metric in dict.fromkeys(name for row in rows for name in row["metrics"]):
            label = metric if chosen == _PLAIN_FILTER or len(filters) == 1 else f"{metric},{chosen}"
            values = [row[metric] for row in rows if metric in row]
            aggregation = aggregations[metric]
            score = _score(values, aggregation, asked, seed)
            told = figures.get(f"{metric},{chosen}")
            if isinstance(told, (int, float)):  # the definition; a mean may differ in the last bit
                score = Score(value=float(told), standard_error=score.standard_error, n=score.n, hash=score.hash)
            found.scores[label] = score
            found.higher_is_better[label] = bool(task.higher_is_better().get(metric, True))
    found.items = _items(name, samples, len(filters))
    return found


def _score(values: Sequence[Any], aggregation: Callable[[Sequence[Any]], Any], asked: str, seed: int) -> Score:
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) == len(values) and math.isclose(float(aggregation(values)), math.fsum(numbers) / len(numbers), abs_tol=1e-9):
        return mean_score(numbers, hash=asked)
    return statistic_score(values, lambda drawn: float(aggregation(drawn)), hash=asked, seed=seed)


def _definition(task: Any) -> dict[str, Any]:
    """What a task is, without where its items lie: the hash is the same on every machine."""
    told = {key: value for key, value in task.dump_config().items() if key not in _INCIDENTAL}
    return {key: value if not callable(value) else getattr(value, "__name__", "function") for key, value in told.items()}


def _items(name: str, samples: Sequence[Mapping[str, Any]], num_filters: int) -> list[dict[str, Any]]:
    """A line for each item: what was asked and answered, and its value under each metric."""
    lines: dict[int, dict[str, Any]] = {}
    for sample in samples:
        line = lines.setdefault(
            sample["doc_id"],
            {
                "task": name,
                "item": sample["doc_id"],
                "hash": hash_of(sample["arguments"], sample["target"]),
                "prompt": _prompt(sample["arguments"]),
                "options": [arguments[1] for arguments in sample["arguments"] if len(arguments) > 1 and _is_text(arguments[1])],
                "target": sample["target"],
                "answers": [_plain(answer) for answer in sample["filtered_resps"]],
                "values": {},
            },
        )
        for metric in sample["metrics"]:
            label = metric if sample["filter"] == _PLAIN_FILTER or num_filters == 1 else f"{metric},{sample['filter']}"
            line["values"][label] = _plain(sample[metric])
    return [lines[number] for number in sorted(lines)]


def _prompt(arguments: Sequence[Sequence[Any]]) -> str:
    return str(arguments[0][0]) if arguments and arguments[0] else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _plain(value: Any) -> Any:
    """A value as JSON takes it."""
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, (list, tuple, set)) else str(value)


def by_name(tasks: Mapping[str, TaskScores]) -> dict[str, Score]:
    """All scores as a gate names them: TASK/METRIC, and TASK for the metric that stands for it."""
    found: dict[str, Score] = {}
    for name, task in tasks.items():
        found[name] = task.scores[task.first]
        found.update({f"{name}/{metric}": score for metric, score in task.scores.items()})
    return found
