"""Train a language model with FSDP on a data set; resumable at any step and any number of ranks."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.config import PathView
from cluster.context import JobContext
from cluster.errors import ConfigError
from jobs.status import find_run
from jobs.training.config import ModelConfig, TrainingConfig
from jobs.training.datasets import Data, check_data


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


def main(context: JobContext) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results."""
    from jobs.training.assembly import assemble
    from sharding.group import process_group

    config = context.config(PretrainConfig)
    # whoever lets a collective take longer knows of something that takes long
    context.heart.begin(patience_seconds=3 * 60 * config.fsdp.timeout_minutes)
    with process_group(config.fsdp.timeout_minutes) as group:
        return assemble(context, config, group).run()
