"""The keys of the `pretrain` job."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.config import PathView
from cluster.errors import ConfigError
from jobs.runs.status import find_run
from jobs.training.config import ModelConfig, TrainingConfig
from jobs.training.token_data import Data, check_data


class PretrainConfig(TrainingConfig):
    """What a pretraining run is made of."""

    data: Data = Field(description="a data set made by preprocess, or a list of {path, weight}")
    model: ModelConfig = Field(default=ModelConfig(preset="tiny"), description="the model")
    seq_len: int = Field(default=1024, ge=1, description="tokens of a sequence")
    on_corrupt: Literal["error", "quarantine"] = Field(default="error", description="what to do about a damaged shard")

    def preflight(self, here: PathView = Path) -> None:
        """Local data sets must be complete."""
        check_data(self.data, here)
        if self.start_from is not None:
            found = find_run(self.start_from.run)
            if self.start_from.run not in {found.id, str(found.path)}:
                raise ConfigError(
                    f"start_from.run: {self.start_from.run!r} may mean another run tomorrow; give the id: {found.id}"
                )
