"""Configuration of what is split over ranks: the batch, the parameters, the checkpoints."""

from typing import Literal

from pydantic import Field

from cluster.config import DataPath, Section


class BatchConfig(Section):
    """The global batch is what the model sees; the micro-batch is what fits one rank at once."""

    global_batch: int = Field(default=32, ge=1, description="sequences of one optimizer step, whatever the world size")
    micro_batch: int = Field(default=4, ge=1, description="most sequences that one rank computes at once")


class FsdpConfig(Section):
    """How parameters are split."""

    reshard: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="free gathered parameters between forward and backward; auto: only where they exceed 2 GiB a rank",
    )
    accumulate: Literal["auto", "sharded", "unsharded"] = Field(
        default="auto",
        description="reduce gradients after each micro-batch, so that a rank keeps its shard of them (sharded), or after the last"
        " (unsharded: less communication); auto: unsharded only where the whole fp32 gradient takes at most 2 GiB",
    )
    timeout_minutes: float = Field(default=10, gt=0, description="a collective that takes longer is an error")


class CheckpointConfig(Section):
    """When the state is saved, where, and how much of it is kept."""

    every_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    keep: int = Field(default=3, ge=1, description="complete checkpoints to keep")
    path: DataPath | None = Field(default=None, description="directory or fsspec URL; unset: checkpoints/ of the run")
    patience_seconds: float = Field(default=120, gt=0, description="how long a store may be away before the attempt fails")
