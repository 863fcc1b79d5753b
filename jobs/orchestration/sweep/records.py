"""Records of a sweep's trials: one JSON file per trial, written before the action that it records."""

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
SWEEP_CANCELLED = "sweep_cancelled"  # event: the user cancelled the sweep and thereby its trials
WITH_THE_SWEEP = "the sweep was cancelled"  # cause shown for a trial that ended `with_sweep`


class TrialState(StrEnum):
    """State of a trial."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"  # saved; waits until the scheduler continues it
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"  # by the scheduler, or by the budget
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """True if the trial is never run again."""
        return self not in {TrialState.PENDING, TrialState.RUNNING, TrialState.PAUSED}


@dataclass
class TrialRecord:
    """One trial, stored as `trials/0003.json`."""

    trial: int
    parameters: dict[str, Any]  # dotted keys whose condition holds
    sampled: dict[str, Any] = field(default_factory=dict)  # all suggested values, in the search's encoding
    runs: list[str] = field(default_factory=list)  # one, and another for each exploit step of PBT
    state: TrialState = TrialState.PENDING
    stopped_at: int | None = None  # last step before the scheduler stopped it
    cause: str = ""
    with_sweep: bool = False  # cancelled together with its sweep, and resumed with it
    lineage: list[dict[str, Any]] = field(default_factory=list)  # from_trial, from_run, step, parameters of each exploit
    created: float = field(default_factory=time.time)
    ended: float | None = None

    @property
    def waits_for_run(self) -> bool:
        """True if the trial's next run is decided but does not exist yet."""
        return len(self.runs) < 1 + len(self.lineage)

    def starting_step(self, index: int) -> int:
        """Return the step of the checkpoint that the trial's run number `index` started from; 0 for a fresh start."""
        return int(self.lineage[index - 1]["step"]) if index else 0

    def end(self, state: TrialState, cause: str = "", *, with_sweep: bool = False) -> None:
        self.state, self.cause, self.with_sweep, self.ended = state, cause, with_sweep, time.time()


def path_of(sweep: RunDir, trial: int) -> Path:
    """Return the path of a trial's record."""
    return sweep.path / FOLDER / f"{trial:04d}.json"


def read_record(sweep: RunDir, trial: int) -> TrialRecord | None:
    """Return a trial's record, or None if the trial was never suggested."""
    values = read_json(path_of(sweep, trial))
    return _record(values) if values else None


def read_records(sweep: RunDir) -> list[TrialRecord]:
    """Return all trials so far, by number, including those just written by another machine."""
    folder = sweep.path / FOLDER
    names = sorted(name for name in list_afresh(folder) if name.endswith(".json") and name[0].isdigit())
    return [_record(values) for name in names if (values := read_json(folder / name))]


def _record(values: Mapping[str, Any]) -> TrialRecord:
    return TrialRecord(**{**values, "state": TrialState(values["state"])})


def write_record(sweep: RunDir, record: TrialRecord) -> None:
    """Write a trial's record atomically."""
    path = path_of(sweep, record.trial)
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(record))
