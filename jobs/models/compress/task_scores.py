"""Task scores of a variant in the engine that serves it: each option's log-likelihood by the plain computation."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.jobs.evaluation.tasks.config import TaskKeys
from ropewalk.jobs.evaluation.tasks.load import load_tasks
from ropewalk.jobs.evaluation.tasks.scoring import evaluate_tasks, task_scores
from ropewalk.jobs.inference.scoring.encode import pair_request
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.requests import Request, clip_context
from ropewalk.jobs.models.compress.artifacts import Artifact, LogProbModel, opened

_SCORED = ("multiple_choice", "loglikelihood")  # task types of lm-eval without generated text


def scored_tasks(config: TaskKeys) -> dict[str, Any]:
    """Return the configured tasks. Raises ConfigError for a task with generated answers; DataError."""
    tasks = load_tasks(config)
    for name, task in tasks.items():
        if task.OUTPUT_TYPE not in _SCORED:
            raise ConfigError(
                f"tasks: {name} has the type {task.OUTPUT_TYPE}, but variants are scored on options only; keep the variant "
                "(keep: true) and score it with `ropewalk run evaluate`"
            )
    return tasks


def scores_of(
    artifact: Artifact, tasks: Mapping[str, Any], config: TaskKeys, dense: OpenModel, threads: int
) -> dict[str, dict[str, Any]]:
    """Return the scores of a variant by task and metric, with standard error, n and hash."""
    model = _Variant(artifact, dense, threads)
    raw = evaluate_tasks(model, tasks, limit=config.limit, chat=False, turns=False, system=None)
    scores_of_task = {name: task_scores(name, task, raw, config.seed) for name, task in tasks.items()}
    return {name: {metric: score.plain() for metric, score in task.scores.items()} for name, task in scores_of_task.items()}


class _Variant(LM):  # type: ignore[misc]
    """Adapter of a variant to lm-eval."""

    def __init__(self, artifact: Artifact, dense: OpenModel, threads: int) -> None:
        super().__init__()
        self._artifact, self._dense, self._threads = artifact, dense, threads

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and True if it is greedy."""
        unit = [self._request(instance) for instance in requests]
        longest = max(len(request.context) + len(request.continuation) for request in unit)
        with opened(self._artifact, context=longest, threads=self._threads) as engine:
            return _answers(engine, unit)

    def _request(self, instance: Any) -> Request:
        request = pair_request(self._dense, *instance.args)
        if not request.continuation:
            raise DataError(f"task {instance.task_name}, item {instance.doc_id}: an option has no tokens; see doc_to_choice")
        return clip_context(request, self._dense.max_length)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Not used by multiple-choice tasks."""
        raise NotImplementedError("variants are scored on options only")

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Not used by multiple-choice tasks."""
        raise NotImplementedError("variants are scored on options only")


def _answers(engine: LogProbModel, requests: Sequence[Request]) -> list[tuple[float, bool]]:
    """Return answers in order; requests that differ only in the last token, such as options of one token, are computed once."""
    inputs: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        inputs.setdefault((*request.context, *request.continuation[:-1]), []).append(index)
    answers: dict[int, tuple[float, bool]] = {}
    for tokens, indices in inputs.items():
        log_probs_TV = engine.log_probabilities(list(tokens))
        for index in indices:
            continuation = requests[index].continuation
            rows_TV = log_probs_TV[len(tokens) - len(continuation) :]
            each = [float(row[token]) for row, token in zip(rows_TV, continuation, strict=True)]
            answers[index] = sum(each), rows_TV.argmax(-1).tolist() == list(continuation)
    return [answers[index] for index in range(len(requests))]
