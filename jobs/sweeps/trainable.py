"""What Ray Tune holds of a trial: an actor that follows a run, and reports what its scheduler wants to hear."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray import tune

from cluster.files import read_json, write_json
from cluster.run_dir import RunDir
from jobs.sweeps.trial import Scene, Trial
from jobs.sweeps.trial_runs import origin_of_trials

SCENE = "scene.json"  # in the driver's scratch: what actors need to know
REFERENCE = "reference.json"


def write_scene(scene: Scene) -> None:
    """Tell the actors, who may be other processes, what all trials have in common."""
    plain = {"sweep": str(scene.sweep.path), "attempt": scene.attempt, "cluster": scene.cluster, "launcher": str(scene.launcher)}
    write_json(scene.scratch / SCENE, {**plain, "every_steps": scene.every_steps, "total_steps": scene.total_steps})


@lru_cache(maxsize=1)
def read_scene(scratch: str) -> Scene:
    """The same in an actor."""
    from jobs.sweep import SweepConfig

    plain: dict[str, Any] = read_json(Path(scratch) / SCENE) or {}
    sweep, place = RunDir(plain.pop("sweep")), Path(plain.pop("launcher"))
    config = SweepConfig.model_validate(sweep.record["config"])
    return Scene(sweep=sweep, config=config, scratch=Path(scratch), launcher=place, origin=origin_of_trials(sweep), **plain)


class TrialOfRuns(tune.Trainable):  # type: ignore[misc]
    """One trial at a time; Tune gives the actor another one when it is done with the first."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial."""
        self.trial = Trial(read_scene(config["scratch"]), config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial, once the one before has left."""
        self.trial.leave()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next reading of the trial."""
        return self.trial.next_report()

    def save_checkpoint(self, checkpoint_dir: str) -> str:
        """Where the trial stands, by reference."""
        (Path(checkpoint_dir) / REFERENCE).write_text(json.dumps(self.trial.reference()))
        return checkpoint_dir

    def load_checkpoint(self, checkpoint: str) -> None:
        """Nothing to do: whether the trial goes on with its own run or from another's checkpoint is in its record."""

    def cleanup(self) -> None:
        """Tune needs the actor no more."""
        self.trial.leave()
