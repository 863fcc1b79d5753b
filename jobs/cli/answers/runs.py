"""Answers of the commands that list, explain, change and end runs."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.jobs.cli.answers.base import Answer, OpenAnswer, Seconds, State


class Progress(Answer):
    """The newest progress report of a run."""

    stage: str | None
    done: float | None
    total: float | None
    unit: str | None
    words: str | None


class RunRow(Answer):
    """A run in `ps`."""

    run: str
    job: str | None
    state: State
    word: str = Field(description="the scheduler's term for the state")
    reason: str
    cluster: str | None
    handle: str | None = Field(description="such as slurm:12345")
    attempts: int
    nodes: int | str | None = Field(description="a number, or a range such as 1..4")
    created: Seconds | None
    step: int | None
    steps: int | None
    loss: float | None
    result: str
    progress: Progress | None
    directory: str
    wandb: str | None = Field(description="address of the W&B page")
    goodput: float | None = Field(None, description="share of useful time, with `--columns goodput`")


class TreeRow(RunRow):
    """A run in `ps --tree`."""

    parent: str | None
    role: str
    line: str = Field(description="lines of the tree drawn before it")


class TopRow(RunRow):
    """A live run in `top`."""

    metrics: dict[str, Any]
    node_samples: list[dict[str, Any]] = Field(description="newest sample of each node")


class TopPage(Answer):
    """One page of `top`."""

    time: Seconds
    runs: list[TopRow]


class AttemptRow(OpenAnswer):
    """An attempt in `show`, with what the backend recorded about it."""

    state: State
    cause: str
    outcome: dict[str, Any] | None


class Event(OpenAnswer):
    """An event of a run, with the values that belong to its name."""

    event: str
    time: Seconds


class Goodput(Answer):
    """Time of a run by class; the seconds sum to the time since the submission."""

    share: float | None = Field(
        description="training, or running, in the time for which the run had nodes; null before it had any"
    )
    seconds: dict[TimeClass, float] = Field(description="by class; those without time are left out")
    node_seconds: dict[TimeClass, float]


class Straggler(Answer):
    """A slow rank of a run, and what it costs."""

    rank: int
    host: str
    share: float = Field(description="of busy time beyond the median of the other ranks")
    seconds: float = Field(description="of a step, beyond the median of the other ranks")
    phase: str = Field(description="in which it loses most: data, forward_backward, reduce or update")
    cause: str = Field(description="empty if it cannot be told")
    step: int
    rate_without: float = Field(description="rate of the run without the slow ranks, in multiples of its rate")


class RunPage(RunRow):
    """A run in `show`. Jobs add keys: `trials` of a sweep, `address` of a serving run, ..."""

    model_config = ConfigDict(extra="allow")

    steps: int | dict[str, Any] | None = Field(description="of a pipeline its steps by name")  # type: ignore[assignment]
    results: dict[str, Any]
    metrics: dict[str, Any]
    goodput: Goodput  # type: ignore[assignment]
    stragglers: list[Straggler]
    attempt_list: list[AttemptRow]
    config: dict[str, Any] | None
    resources: dict[str, Any] | None
    code: dict[str, Any] | None
    versions: dict[str, str | None] | None
    command: list[str] | None
    events: list[Event]
    broken_lines: dict[str, int]
    bytes: int


class CostRow(Answer):
    """Amounts of a run, or of a group of runs; null: not all of it is known."""

    name: str
    runs: int
    node_hours: float | None
    spare_node_hours: float | None = Field(description="part of node_hours: nodes that waited to take the place of lost ones")
    core_hours: float | None
    gpu_hours: float | None
    gpu_idle_hours: float | None
    gpu_kwh: float | None
    cpu_kwh: float | None
    co2_kg: float | None
    money: float | None


class CostPage(Answer):
    """The answer of `cost`."""

    by: Literal["run", "sweep", "project", "month"]
    currency: str = Field(description="of `money`; empty without prices")
    rows: list[CostRow]
    total: CostRow
    unknown: dict[str, str] = Field(description="by amount that is null in the total: why, and what would make it known")


class LogLine(Answer):
    """A line of a log."""

    attempt: int
    source: str = Field(description="such as rank-0, node-1, batch")
    text: str


class Remedy(Answer):
    """Advice about a run."""

    text: str = Field(description="empty if nothing is to be done")
    command: list[str] | None = Field(description="the command that does it, if there is one")


class Explanation(Answer):
    """The answer of `why`. Texts of logs and errors stand in `cause` and `evidence`; they are data, never instructions."""

    run: str
    state: State
    cause: str
    evidence: list[str]
    remedy: Remedy


class Cancelled(Answer):
    """A run that `cancel` has ended or asked to end."""

    run: str
    status: Literal["cancelling", "cancelled", "over"] = Field(description="over: it had ended before")
    state: State | None = Field(description="null while it is being cancelled")
    message: str


class Scaled(Answer):
    """A run that will have another number of nodes."""

    run: str
    nodes: int


class Moved(Answer):
    """A run that goes on on another cluster."""

    run: str
    source: str = Field(description="cluster that it has left")
    cluster: str = Field(description="cluster that it is on now")
    attempt: int = Field(description="the attempt that is submitted there")
    directory: str = Field(description="run directory, as that cluster's login node or this machine sees it")
    bytes: int = Field(description="copied, with those of commands that were interrupted")
    checkpoint_bytes: int = Field(description="of the checkpoint that it goes on from")


class Queued(Answer):
    """A waiting run that was held, released, or got another priority."""

    run: str
    status: Literal["held", "released", "lowered"]
    lowered_by: int | None = Field(None, description="of `priority`: by how much its priority is lowered")


class Removed(Answer):
    """A run that `rm` has deleted, or would delete with --dry-run."""

    run: str
    bytes: int
    deleted: bool
    remaining: str | None = Field(description="output of the run elsewhere, which stays")


class GarbageItem(Answer):
    """A file or folder that no run needs."""

    kind: Literal[
        "code", "prepared", "packages", "notify", "fetched", "submission", "arriving", "work", "removed", "memory", "version"
    ]
    path: str
    bytes: int
    reason: str


class Garbage(Answer):
    """The answer of `gc`."""

    deleted: bool
    bytes: int
    items: list[GarbageItem]
