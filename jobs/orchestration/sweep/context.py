"""Context shared by all trials of one attempt of a sweep; Ray Tune passes it to their actors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.orchestration.sweep.config import SweepConfig

CLUSTERS = "clusters.yaml"  # in the sweep's run: profiles of the clusters of driver and trials
ORDER = "order.json"  # in the driver's scratch folder: the reason why all trials must stop


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """Paths and settings shared by all trials of one attempt of a sweep."""

    sweep: RunDir
    attempt: int
    config: SweepConfig
    cluster: str  # where the trials run
    scratch: Path  # the driver's scratch folder
    launcher: Path  # the folder of the process that starts trials' runs
    gpus: int = 0  # local GPUs per trial; 0 if trials run elsewhere or need none
    every_steps: int | None = None  # decision interval of the scheduler
    total_steps: int | None = None  # steps of a complete trial
    defaults: Mapping[str, Any]  # dotted keys of every trial, besides base and parameters
    origin: Mapping[str, Any]  # code, versions and command recorded by the sweep; trials run the same

    def stop_reason(self) -> str:
        """Return why all trials must stop (preempted, cancelled, budget, failures), or an empty string."""
        order = read_json(self.scratch / ORDER)
        return str(order["order"]) if order else "cancelled" if self.sweep.cancel_requested else ""

    def run(self, name: str) -> RunDir:
        """Return a trial's run by its id; its directory is beside the sweep's."""
        return RunDir(self.sweep.path.parent / name)
