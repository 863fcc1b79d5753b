"""What all trials of one attempt of a sweep have in common; Ray Tune hands it to their actors, on whichever node."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.orchestration.sweep.config import SweepConfig

CLUSTERS = "clusters.yaml"  # in the sweep's run: the clusters that the driver and its trials go by
ORDER = "order.json"  # in the driver's scratch: why all trials are to stop


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """What all trials of one attempt of a sweep have in common."""

    sweep: RunDir
    attempt: int
    config: SweepConfig
    cluster: str  # where the trials run
    scratch: Path  # the driver's
    launcher: Path  # the folder of the process that starts trials' runs
    gpus: int = 0  # GPUs of this machine that each trial takes; 0 where it runs elsewhere or needs none
    every_steps: int | None = None  # how often the scheduler decides on a trial
    total_steps: int | None = None  # of a complete trial
    defaults: Mapping[str, Any]  # dotted keys of every trial, besides base and parameters
    origin: Mapping[str, Any]  # code, versions and command, as the sweep recorded them: trials run what was submitted with it

    def stop_reason(self) -> str:
        """Why all trials are to stop (preempted, cancelled, budget, failures), or nothing."""
        found = read_json(self.scratch / ORDER)
        return str(found["order"]) if found else "cancelled" if self.sweep.cancel_requested else ""

    def run(self, name: str) -> RunDir:
        """A trial's run, by its id: it lies beside the sweep."""
        return RunDir(self.sweep.path.parent / name)
