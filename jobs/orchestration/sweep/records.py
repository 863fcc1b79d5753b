"""What a sweep knows of its trials: a small JSON file for each, written before the effect that it tells of."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json

FOLDER = "trials"
SWEEP_CANCELLED = "sweep_cancelled"  # the event: the user has cancelled it, and with it its trials
WITH_THE_SWEEP = "the sweep was cancelled"  # the cause, for people, of a trial that ended `with_sweep`


class TrialState(StrEnum):
    """What a trial is doing."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"  # saved, and not running until the scheduler wants it again
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"  # by the scheduler, or because the budget is spent
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether the trial is never run again."""
        return self not in {TrialState.PENDING, TrialState.RUNNING, TrialState.PAUSED}


@dataclass
class TrialRecord:
    """One trial: the content of `trials/0003.json`."""

    trial: int
    parameters: dict[str, Any]  # dotted keys, those whose condition holds
    sampled: dict[str, Any] = field(default_factory=dict)  # all that the search suggested, as the search encodes it
    runs: list[str] = field(default_factory=list)  # one, but for each exploit another
    state: TrialState = TrialState.PENDING
    stopped_at: int | None = None  # the step after which the scheduler wanted no more
    cause: str = ""
    with_sweep: bool = False  # it was cancelled because its sweep was, and is resumed if the sweep is
    lineage: list[dict[str, Any]] = field(default_factory=list)  # from_trial, from_run, step, parameters of each exploit
    created: float = field(default_factory=time.time)
    ended: float | None = None

    @property
    def waits_for_run(self) -> bool:
        """Whether the trial's next run is decided on and does not exist yet."""
        return len(self.runs) < 1 + len(self.lineage)

    def starting_step(self, place: int) -> int:
        """The step of the checkpoint that the trial's run number `place` began with; 0: it began from scratch."""
        return int(self.lineage[place - 1]["step"]) if place else 0

    def end(self, state: TrialState, cause: str = "", *, with_sweep: bool = False) -> None:
        """Record that the trial is over."""
        self.state, self.cause, self.with_sweep, self.ended = state, cause, with_sweep, time.time()


def path_of(sweep: RunDir, trial: int) -> Path:
    """The path of a trial's record."""
    return sweep.path / FOLDER / f"{trial:04d}.json"


def read_record(sweep: RunDir, trial: int) -> TrialRecord | None:
    """A trial's record, or None if the trial was never suggested."""
    found = read_json(path_of(sweep, trial))
    return _record(found) if found else None


def read_records(sweep: RunDir) -> list[TrialRecord]:
    """All trials so far, by number, also those that another machine has just written down."""
    folder = sweep.path / FOLDER
    names = sorted(name for name in list_afresh(folder) if name.endswith(".json") and name[0].isdigit())
    return [_record(found) for name in names if (found := read_json(folder / name))]


def _record(values: Mapping[str, Any]) -> TrialRecord:
    return TrialRecord(**{**values, "state": TrialState(values["state"])})


def write_record(sweep: RunDir, record: TrialRecord) -> None:
    """Write a trial's record, whole or not at all."""
    path = path_of(sweep, record.trial)
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(record))
