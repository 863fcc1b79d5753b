"""What Ray Tune holds of a trial: an actor that follows a run, and reports what its scheduler wants to hear."""

import json
from pathlib import Path
from typing import Any

from ray import tune

from jobs.sweep.context import read_scene
from jobs.sweep.trial import Trial

REFERENCE = "reference.json"


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
