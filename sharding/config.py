"""Configuration of what is divided among ranks: the batch, the model, the checkpoints."""

from typing import Literal

from pydantic import Field

from ropewalk.cluster.config import DataPath, Section


class BatchConfig(Section):
    """The global batch is what the model sees; the micro-batch is what fits one rank at once."""

    global_batch: int = Field(default=32, ge=1, description="sequences of one optimizer step, whatever the world size")
    micro_batch: int = Field(default=4, ge=1, description="maximum sequences that one rank computes at once")


class ParallelConfig(Section):
    """How a model and its work are divided among the ranks."""

    replicate: int = Field(
        default=1, ge=1, description="copies of the sharded model (HSDP); each copy is sharded over the ranks that share it"
    )
    tensor: int = Field(default=1, ge=1, description="tensor-parallel degree; only 1 is supported so far")
    reshard: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="reshard parameters after forward; auto: only where the gathered ones exceed 2 GiB a rank",
    )
    accumulate: Literal["auto", "sharded", "unsharded"] = Field(
        default="auto",
        description="reduce gradients after each micro-batch, so that a rank keeps its shard of them (sharded), or after the last"
        " (unsharded: less communication); auto: unsharded only where the full fp32 gradient takes at most 2 GiB",
    )
    activation_checkpointing: Literal["none", "full"] = Field(
        default="none", description="full: recompute each layer's activations in backward, to save memory"
    )
    compile: bool = Field(default=False, description="compile each layer with torch.compile")
    timeout_minutes: float = Field(default=10, gt=0, description="a collective that takes longer is an error")


class PrecisionConfig(Section):
    """The number formats of training. Trained parameters and optimizer state are fp32 whatever these keys say."""

    compute: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="format of forward and backward; auto: bf16 on GPUs that have it (Ampere or later), else fp32"
    )
    reduce: Literal["fp32", "bf16"] = Field(default="fp32", description="format in which gradients are reduced over ranks")


class CheckpointConfig(Section):
    """When the state is saved, where, and how much of it is kept."""

    every_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    keep: int = Field(default=3, ge=1, description="complete checkpoints to keep")
    path: DataPath | None = Field(default=None, description="directory or fsspec URL; unset: checkpoints/ of the run")
    patience_seconds: float = Field(default=120, gt=0, description="how long a store may be away before the attempt fails")
