"""Lookup of answers in the ledger that every endpoint keeps, with or without capture."""

from typing import NamedTuple

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store


class Answer(NamedTuple):
    """One answer of a serving run, without its content."""

    id: str  # request id, x-request-id
    answer_id: str | None  # `id` in the response body
    time: float  # seconds since the epoch
    alias: str
    version: str
    replica: str
    path: str
    status: int
    outcome: str
    prompt_tokens: int | None
    completion_tokens: int | None
    first_token_seconds: float | None
    seconds: float
    moves: int
    client: str | None = None  # name of its token


def find_answer(run: RunDir, number: str) -> Answer | None:
    """Return the answer with this answer id or request id, or None if the run has none."""
    row = answers_store(run.path / FOLDER).find(("answer_id", "id"), number)
    return Answer(**{name: row[name] for name in Answer._fields}) if row else None
