"""Configuration of the batch, the division of the model among the ranks, number formats and checkpoints."""

from typing import Literal

from pydantic import Field, field_validator

from ropewalk.cluster.config import DataPath, Resources, Section
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.text import counted

DETERMINISTIC_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # streams do not share a workspace
    "NCCL_ALGO": "Ring",  # trees and switches may sum in another order
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # choose kernels without timing them
}


class BatchConfig(Section):
    """Batch sizes: the global batch determines the update, the micro-batch the memory of a rank."""

    global_batch: int = Field(default=32, ge=1, description="sequences per optimizer step, at any world size")
    micro_batch: int = Field(default=4, ge=1, description="maximum sequences that a rank computes at once")


class ParallelConfig(Section):
    """Division of a model and its work among the ranks."""

    hidden_keys = frozenset({"tensor"})

    replicate: int = Field(
        default=1, ge=1, description="copies of the sharded model (HSDP); each copy is sharded over the ranks that share it"
    )
    tensor: int = Field(default=1, ge=1, description="tensor-parallel degree; only 1 is supported so far")
    reshard: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="reshard parameters after forward; auto: only if the gathered parameters exceed 2 GiB per rank",
    )
    accumulate: Literal["auto", "sharded", "unsharded"] = Field(
        default="auto",
        description="reduce gradients after each micro-batch, so that a rank keeps only its shard (sharded), or after the last"
        " (unsharded: less communication); auto: unsharded if the full fp32 gradient takes at most 2 GiB",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none",
        description="save memory by recomputing each layer's activations in backward: all of them (full), or all but the"
        " outputs of matrix products and attention (selective), which costs little time",
    )
    compile: bool = Field(default=False, description="compile each layer with torch.compile")
    timeout_minutes: float = Field(default=10, gt=0, description="time limit of a collective")

    @field_validator("tensor")
    @classmethod
    def _only_one(cls, tensor: int) -> int:
        if tensor != 1:
            raise ValueError(
                "must be 1: tensor parallelism is not supported, and FSDP shards the model over all ranks; remove it"
            )
        return tensor


def check_mesh(parallel: ParallelConfig, resources: Resources) -> None:
    """Raise ConfigError unless the ranks of every allowed number of nodes divide into the copies of the model."""
    copies, per_node, nodes = parallel.replicate, resources.local_world_size, resources.nodes
    uneven = [count * per_node for count in range(nodes.least, nodes.most + 1) if count * per_node % copies]
    if uneven:
        ranks = f"resources.nodes={nodes} with {counted(per_node, 'rank')} each make {uneven[0]} in all"
        raise ConfigError(
            f"parallel.replicate: {counted(uneven[0], 'rank')} cannot be divided into {copies} copies of the model ({ranks});"
            f" remove parallel.replicate, or set resources.gpus or resources.ranks_per_node to a multiple of {copies}"
        )


class PrecisionConfig(Section):
    """Number formats of training. Trained parameters are always fp32."""

    compute: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description="format of forward and backward; auto: bf16 on GPUs that support it (Ampere or later), else fp32",
    )
    reduce: Literal["fp32", "bf16"] = Field(default="fp32", description="format of the gradient reduction over ranks")
    optimizer: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="format of AdamW's two moments and of Muon's momentum, in memory and in checkpoints; bf16 halves them."
        " Updates are computed in fp32; weights, gradients and averages of weights stay fp32",
    )
    deterministic: bool = Field(
        default=False,
        description="use deterministic kernels and reductions only, so that equal runs on equal GPUs are bit-identical; slower."
        " CPUs are deterministic without it",
    )

    def environment(self) -> dict[str, str]:
        """Return the variables that CUDA's libraries read when they start."""
        return dict(DETERMINISTIC_ENVIRONMENT) if self.deterministic else {}


class CheckpointConfig(Section):
    """Checkpoint interval, location and retention."""

    every_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    keep: int = Field(default=3, ge=1, description="complete checkpoints to keep")
    path: DataPath | None = Field(default=None, description="directory or fsspec URL; unset: checkpoints/ of the run")
    patience_seconds: float = Field(
        default=120, gt=0, description="seconds that storage may be unavailable before the attempt fails"
    )
