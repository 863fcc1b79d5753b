"""Answers of the commands about models, checkpoints, data and feedback."""

from typing import Any, Literal

from pydantic import Field

from ropewalk.jobs.cli.answers.base import Answer, OpenAnswer, Seconds

Interval = tuple[float, float]


class Fetched(Answer):
    """An input of a job that was fetched."""

    key: str = Field(description="key of the job that names it")
    name: str = Field(description="name with the commit")
    path: str = Field(description="where the cluster reads it")


class Exported(Answer):
    """A model that `export` has written."""

    run: str
    path: str
    format: str


class ChatTurn(Answer):
    """A prompt of `chat` and the answer."""

    prompt: str
    answer: str


class Checkpoint(Answer):
    """A checkpoint. Without a readable manifest only step, pins and problems are known."""

    step: int
    pinned_by: list[str]
    bytes: int | None
    world_size: int | None
    mesh: dict[str, int] | None
    time: Seconds | None
    best: bool
    verified: bool
    problems: list[str]


class Checkpoints(Answer):
    """The answer of `checkpoints`."""

    run: str
    checkpoints: list[Checkpoint]


class Score(Answer):
    """A value with its evidence."""

    value: float | None
    standard_error: float | None
    n: int
    hash: str = Field(description="hash of what was asked")


class PairedTest(Answer):
    """Mean of paired differences, first side minus second; null where there are too few pairs."""

    difference: float | None
    standard_error: float | None
    interval: Interval | None
    p_value: float | None
    mid_p_value: float | None
    smallest_difference: float | None
    detectable_difference: float | None
    n: int
    groups: int
    better: Literal["first", "second"] | None


class MetricComparison(PairedTest):
    """Comparison of one metric of one task."""

    task: str
    metric: str
    higher_is_better: bool
    first: float
    second: float
    unpaired: int
    hash: str
    unit: str
    words: str


class Comparison(Answer):
    """The answer of `compare`."""

    first: str
    second: str
    runs: list[tuple[str, str]]
    seeds: bool
    scores: dict[str, dict[str, Score]] = Field(description="differences by task and metric")
    comparisons: list[MetricComparison]
    report: str = Field(description="HTML page with examples")


class Drift(OpenAnswer):
    """The answer of `drift`."""

    alarm: bool
    p: float
    alpha: float
    summary: str
    tests: dict[str, dict[str, Any]]
    share: dict[str, float]
    current: dict[str, Any]
    reference: dict[str, Any]
    calibration: dict[str, Any] | None
    ratings: dict[str, Any] | None
    probes: PairedTest | None
    report: str


class Sent(Answer):
    """Lines of a run that `sync` has sent."""

    run: str
    lines: int


class SyncMessage(Answer):
    """A line of `sync --follow`."""

    time: Seconds
    message: str


class Version(OpenAnswer):
    """A version in the registry."""

    version: str
    ref: str
    run: str | None
    step: int | None
    path: str | None
    weights: str
    created: Seconds
    by: str
    removed: dict[str, Any] | None


class Move(OpenAnswer):
    """A change of an alias."""

    alias: str
    number: int
    version: str | None
    kind: Literal["promote", "rollback", "withdraw"]
    by: str
    time: Seconds
    gates: list[dict[str, Any]]
    forced: str | None
    reason: str | None


class Promoted(Move):
    """The answer of `promote`."""

    ref: str
    directory: str


class RegisteredModel(Answer):
    """A model in the registry."""

    model: str
    root: str
    aliases: dict[str, str]
    versions: list[Version]
    history: list[Move]
    rollouts: list[dict[str, Any]]


class Approved(Answer):
    """The decision that `approve` has recorded."""

    run: str
    round: int
    candidate: str
    approved: bool


class Places(Answer):
    """Locations of documents, and the models that learnt from them."""

    places: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    versions: list[dict[str, Any]]


class TracedDocument(Places):
    """A document of the training data."""

    document: str


class Trace(Answer):
    """The answer of `trace`."""

    answer: dict[str, Any] | None = Field(description="model, run, code, data and feedback behind an answer")
    document: TracedDocument | None


class RatedShare(Answer):
    """Mean of ratings between 0 and 1, with a 95% interval."""

    n: int
    groups: int
    value: float | None
    low: float | None
    high: float | None


class FeedbackRow(Answer):
    """Statistics of one version, hour or day."""

    name: str
    answers: int
    failed: int
    captured: int
    corrections: int
    rated: RatedShare


class Feedback(Answer):
    """The answer of `feedback`."""

    run: str
    answers: int
    captured: int
    dropped: int
    ratings: int
    outcomes: dict[str, int]
    versions: list[FeedbackRow]
    times: list[FeedbackRow]
    deleted: int
    export: dict[str, Any] | None


class Forgotten(Places):
    """The answer of `forget`."""

    run: str
    erased: dict[str, int]
