"""The nouns that every floor shares: run states, engines, a job's entry in the registry, an attempt's outcome."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    """What a run is doing. A scheduler's own word for it is kept beside this state, never instead of it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REFUSED = "REFUSED"  # all was done, and a figure misses what the run's `require` asks
    CANCELLED = "CANCELLED"
    PREEMPTED = "PREEMPTED"
    REQUEUED = "REQUEUED"
    UNKNOWN = "UNKNOWN"

    @property
    def final(self) -> bool:
        """Whether no further attempt follows by itself."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.REFUSED, RunState.CANCELLED}

    @property
    def failed(self) -> bool:
        """Whether the run is over without what it was started for, and nobody has asked for that end."""
        return self in {RunState.FAILED, RunState.REFUSED}


class StopReason(StrEnum):
    """Why the owner of the nodes wants a run to stop, where that decides how the attempt ends; other reasons are plain words."""

    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time limit"


# `opened_by` of an attempt that a submission or a resume opened: budgets start anew with it
BY_SUBMISSION = "submission"


class Engine(StrEnum):
    """How an agent brings a job's entry to life."""

    RANKS = "ranks"  # torch.distributed.elastic: one process a rank on every node
    RAY = "ray"  # a Ray cluster over the allocation, the driver on its first node
    PROCESS = "process"  # one process on the first node


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job's entry in the registry: everything by name, so that listing jobs imports none of them.

    `config` and `entry` are `module:attribute`; importing the config's module must stay light
    (no torch, ray or transformers). The entry is called as `entry(context)` and returns its results.
    """

    name: str
    summary: str
    config: str
    entry: str
    engine: Engine
    preload: tuple[str, ...] = ()  # modules that are imported once, before ranks are forked
    reports: tuple[str, ...] = ()  # patterns of the metrics that it reports; none: unknown
    view: str = (
        "ropewalk.jobs.runs.show.view:RunView"  # how its runs are shown, explained and cancelled; its import must stay light too
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended: the content of `attempts/NNNN/outcome.json`."""

    state: RunState
    exit_code: int
    cause: str  # plain words: what ended it
    started: float = 0.0  # seconds since the epoch
    ended: float = 0.0
    results: Mapping[str, object] | None = None
