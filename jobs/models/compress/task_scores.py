"""Task scores of a variant, in the engine that serves it: each option's log-likelihood by the plain computation."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.jobs.evaluation.tasks.config import TaskKeys
from ropewalk.jobs.evaluation.tasks.load import load_tasks
from ropewalk.jobs.evaluation.tasks.scoring import evaluate_tasks, task_scores
from ropewalk.jobs.inference.scoring.encode import pair_request
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.requests import Request, clipped
from ropewalk.jobs.models.compress.artifacts import Artifact, Asked, opened

_SCORED = ("multiple_choice", "loglikelihood")  # lm-eval's types of task that need no text to be written


def scored_tasks(config: TaskKeys) -> dict[str, Any]:
    """The tasks that a configuration names. Raises ConfigError for one whose text a model has to write; DataError."""
    tasks = load_tasks(config)
    for name, task in tasks.items():
        if task.OUTPUT_TYPE not in _SCORED:
            raise ConfigError(
                f"tasks: {name} is of the type {task.OUTPUT_TYPE}, and variants are scored on options alone; keep the variant "
                "(keep: true), and let `ropewalk run evaluate` ask it"
            )
    return tasks


def scores_of(
    artifact: Artifact, tasks: Mapping[str, Any], config: TaskKeys, dense: OpenModel, threads: int
) -> dict[str, dict[str, Any]]:
    """The scores of a variant by task and metric, each with standard error, n and the hash of what was asked."""
    model = _Variant(artifact, dense, threads)
    raw = evaluate_tasks(model, tasks, limit=config.limit, chat=False, turns=False, system=None)
    found = {name: task_scores(name, task, raw, config.seed) for name, task in tasks.items()}
    return {name: {metric: score.plain() for metric, score in task.scores.items()} for name, task in found.items()}


class _Variant(LM):  # type: ignore[misc]
    """A variant as lm-eval asks it."""

    def __init__(self, artifact: Artifact, dense: OpenModel, threads: int) -> None:
        super().__init__()
        self._artifact, self._dense, self._threads = artifact, dense, threads

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is greedy."""
        asked = [self._request(instance) for instance in requests]
        longest = max(len(request.context) + len(request.continuation) for request in asked)
        with opened(self._artifact, context=longest, threads=self._threads) as engine:
            return _answers(engine, asked)

    def _request(self, instance: Any) -> Request:
        found = pair_request(self._dense, *instance.args)
        if not found.continuation:
            raise DataError(f"task {instance.task_name}, item {instance.doc_id}: an option has no tokens; see doc_to_choice")
        return clipped(found, self._dense.max_length)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """No task that is scored asks for it."""
        raise NotImplementedError("variants are scored on options alone")

    def generate_until(self, requests: list[Any]) -> list[str]:
        """No task that is scored asks for it."""
        raise NotImplementedError("variants are scored on options alone")


def _answers(engine: Asked, asked: Sequence[Request]) -> list[tuple[float, bool]]:
    """Answers in their order; requests of equal tokens up to the last, such as options of one token, are computed once."""
    inputs: dict[tuple[int, ...], list[int]] = {}
    for place, request in enumerate(asked):
        inputs.setdefault((*request.context, *request.continuation[:-1]), []).append(place)
    found: dict[int, tuple[float, bool]] = {}
    for tokens, places in inputs.items():
        log_probs_TV = engine.log_probabilities(list(tokens))
        for place in places:
            wanted = asked[place].continuation
            rows_TV = log_probs_TV[len(tokens) - len(wanted) :]
            each = [float(row[token]) for row, token in zip(rows_TV, wanted, strict=True)]
            found[place] = sum(each), rows_TV.argmax(-1).tolist() == list(wanted)
    return [found[place] for place in range(len(asked))]
