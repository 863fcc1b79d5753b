"""What all trials of one attempt of a sweep have in common, told to actors that may be on other nodes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.backends.profiles import PROFILES_VARIABLE
from cluster.run.directory import RunDir
from cluster.run.files import read_json, write_json
from jobs.sweep.trial_runs import origin_of_trials

if TYPE_CHECKING:
    from jobs.sweep.config import SweepConfig

CLUSTERS = "clusters.yaml"  # in the sweep's run: the clusters that the driver and its trials go by
ORDER = "order.json"  # in the driver's scratch: why all trials are to leave
SCENE = "scene.json"  # in the driver's scratch: what actors need to know


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all trials of one attempt of a sweep have in common."""

    sweep: RunDir
    attempt: int
    config: "SweepConfig"
    cluster: str  # where the trials run
    scratch: Path  # the driver's: the order to leave
    launcher: Path  # the folder of whoever starts runs
    gpus: int  # GPUs of this machine that each trial takes; 0 where it runs elsewhere or needs none
    every_steps: int | None  # how often the scheduler wants to hear of a trial
    total_steps: int | None  # of a whole trial
    origin: Mapping[str, Any]

    def order(self) -> str:
        """Why all trials are to leave (preempted, cancelled, budget, failures), or nothing."""
        found = read_json(self.scratch / ORDER)
        return str(found["order"]) if found else "cancelled" if self.sweep.cancel_requested else ""


def write_scene(scene: Scene) -> None:
    """Tell the actors, who may be other processes, what all trials have in common."""
    names = ("attempt", "cluster", "gpus", "every_steps", "total_steps")
    plain = {"sweep": str(scene.sweep.path), "launcher": str(scene.launcher)}
    write_json(scene.scratch / SCENE, {**plain, **{name: getattr(scene, name) for name in names}})


@lru_cache(maxsize=1)
def read_scene(scratch: str) -> Scene:
    """The same in an actor."""
    from jobs.sweep.config import SweepConfig

    plain: dict[str, Any] = read_json(Path(scratch) / SCENE) or {}
    sweep, place = RunDir(plain.pop("sweep")), Path(plain.pop("launcher"))
    os.environ[PROFILES_VARIABLE] = str(sweep.path / CLUSTERS)
    config = SweepConfig.model_validate(sweep.record["config"])
    return Scene(sweep=sweep, config=config, scratch=Path(scratch), launcher=place, origin=origin_of_trials(sweep), **plain)
