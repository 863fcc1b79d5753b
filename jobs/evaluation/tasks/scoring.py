"""Scores of tasks: lm-eval computes every value; standard error, n, hash and items are added here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.jobs.results.score import Score, hash_of, mean_score, statistic_score

_PLAIN_FILTER = "none"
_FIRST = ("acc", "exact_match", "f1", "bits_per_byte", "perplexity")  # preferred primary metrics, in this order
# keys about paths, descriptions or functions; their effect is already in the prompts
_INCIDENTAL = {"dataset_path", "dataset_name", "dataset_kwargs", "metadata", "tag", "group", "custom_dataset", "process_docs"}


@dataclass(kw_only=True)
class TaskScores:
    """Scores and items of one task."""

    scores: dict[str, Score]  # by metric
    higher_is_better: dict[str, bool]
    items: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first(self) -> str:
        """The task's primary metric."""
        return first_metric(self.scores)


def first_metric(scores: Mapping[str, Any]) -> str:
    """Return the primary metric among the scores of a task."""
    return next((name for name in _FIRST if name in scores), next(iter(scores)))


def evaluate_tasks(
    model: Any, tasks: Mapping[str, Any], *, limit: int | None, chat: bool, turns: bool, system: str | None
) -> Any:
    """Run lm-eval on the tasks and return its results with every item."""
    from lm_eval.evaluator import evaluate

    return evaluate(
        lm=model,
        task_dict={"tasks": dict(tasks)},
        limit=limit,
        bootstrap_iters=0,  # its standard errors ignore clusters and take minutes
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat and turns,
        system_instruction=system,
    )


def task_scores(name: str, task: Any, evaluated: Mapping[str, Any], seed: int) -> TaskScores:
    """Return the scores of one task, and its items by number."""
    samples = sorted(evaluated["samples"][name], key=lambda sample: (sample["filter"], sample["doc_id"]))
    figures = evaluated["results"][name]
    content_hash = hash_of(_definition(task), [[sample["arguments"], sample["target"]] for sample in samples])
    aggregations = task.aggregation()
    filters = dict.fromkeys(sample["filter"] for sample in samples)
    result = TaskScores(scores={}, higher_is_better={}, items=[])
    for chosen in filters:
        rows = [sample for sample in samples if sample["filter"] == chosen]
        for metric in dict.fromkeys(name for row in rows for name in row["metrics"]):
            label = metric if chosen == _PLAIN_FILTER or len(filters) == 1 else f"{metric},{chosen}"
            values = [row[metric] for row in rows if metric in row]
            aggregation = aggregations[metric]
            score = _score(values, aggregation, content_hash, seed)
            aggregate = figures.get(f"{metric},{chosen}")
            if isinstance(aggregate, (int, float)):  # lm-eval's value is the definition; a mean may differ in the last bit
                score = Score(value=float(aggregate), standard_error=score.standard_error, n=score.n, hash=score.hash)
            result.scores[label] = score
            result.higher_is_better[label] = bool(task.higher_is_better().get(metric, True))
    result.items = _items(name, samples, len(filters))
    return result


def _score(values: Sequence[Any], aggregation: Callable[[Sequence[Any]], Any], content_hash: str, seed: int) -> Score:
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) == len(values) and math.isclose(float(aggregation(values)), math.fsum(numbers) / len(numbers), abs_tol=1e-9):
        return mean_score(numbers, hash=content_hash)
    return statistic_score(values, lambda drawn: float(aggregation(drawn)), hash=content_hash, seed=seed)


def _definition(task: Any) -> dict[str, Any]:
    """Return the task's definition without the paths of its items, so that the hash is the same on every machine."""
    config = {key: value for key, value in task.dump_config().items() if key not in _INCIDENTAL}
    return {key: value if not callable(value) else getattr(value, "__name__", "function") for key, value in config.items()}


def _items(name: str, samples: Sequence[Mapping[str, Any]], num_filters: int) -> list[dict[str, Any]]:
    """Return a line for each item: prompt, answers, and the value of each metric."""
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
    """Convert a value to plain JSON types."""
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple, set)) else str(value)


def by_name(tasks: Mapping[str, TaskScores]) -> dict[str, Score]:
    """Return all scores by their names in a gate: TASK/METRIC, and TASK for the primary metric."""
    scores: dict[str, Score] = {}
    for name, task in tasks.items():
        scores[name] = task.scores[task.first]
        scores.update({f"{name}/{metric}": score for metric, score in task.scores.items()})
    return scores
