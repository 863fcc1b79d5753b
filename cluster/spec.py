"""Types that all layers share: run states, engines, job registry entries, attempt outcomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class RunState(StrEnum):
    """State of a run, the same on every backend. The scheduler's own term is shown beside it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REFUSED = "REFUSED"  # the job finished, but a score does not meet the run's `require`
    CANCELLED = "CANCELLED"
    PREEMPTED = "PREEMPTED"
    REQUEUED = "REQUEUED"
    UNKNOWN = "UNKNOWN"

    @property
    def final(self) -> bool:
        """True if no further attempt follows automatically."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.REFUSED, RunState.CANCELLED}

    @property
    def failed(self) -> bool:
        """True if the run ended without success and was not cancelled."""
        return self in {RunState.FAILED, RunState.REFUSED}


class StopReason(StrEnum):
    """Reasons for stopping a run that determine the attempt's outcome; any other reason is free text."""

    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time limit"


# `opened_by` of an attempt that `submit` or `resume` opened: the retry budgets restart with it
BY_SUBMISSION = "submission"


class Engine(StrEnum):
    """Way in which an agent runs a job's entry."""

    RANKS = "ranks"  # torch.distributed.elastic: one process per rank on every node
    RAY = "ray"  # a Ray cluster on all nodes of the allocation, the driver on the first node
    PROCESS = "process"  # one process on the first node


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job's entry in the registry. Modules are given by name, so listing the jobs imports none of them.

    `config` and `entry` are `module:attribute`; importing the config's module must stay light
    (no torch, ray or transformers). The entry is called as `entry(context)` and returns its results.
    """

    name: str
    summary: str
    config: str
    entry: str
    engine: Engine
    preload: tuple[str, ...] = ()  # modules to import once in the fork server, before ranks are forked; none: torch
    reports: tuple[str, ...] = ()  # patterns of the names of its metrics; empty: unknown
    files: Mapping[str, str] = field(default_factory=dict)  # its own files in the run directory, with their content
    view: str = (
        "ropewalk.jobs.runs.show.view:RunView"  # class that shows, explains and cancels its runs; importing it must stay light
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of an attempt: the content of `attempts/NNNN/outcome.json`."""

    state: RunState
    exit_code: int
    cause: str  # a sentence for people
    started: float = 0.0  # seconds since the epoch
    ended: float = 0.0
    results: Mapping[str, object] | None = None
