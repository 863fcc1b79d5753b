"""Configuration of the batch, the division of the model among the ranks, number formats and checkpoints."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath
from ropewalk.cluster.section import Section
from ropewalk.cluster.text import counted

USUAL_MICRO_BATCH = 4
# hidden where they have no effect
FLOAT8_KEYS = frozenset({"precision.float8", "precision.float8_layers"})
TENSOR_KEYS = frozenset({"parallel.tensor", "parallel.expert"})
FLOAT8_CAPABILITY = (8, 9)  # of GPUs: Ada, Hopper or later
FLOAT8_MULTIPLE = 16  # of the sizes of matrices, which float8 products need
FLOAT8_NEEDS = (
    "precision.float8: rowwise needs GPUs of compute capability 8.9 or later, such as L4, L40S, H100 or B200; remove it, or set"
    " precision.float8=emulated to try its numerics, slowly, on any device"
)
DETERMINISTIC_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # streams do not share a workspace
    "NCCL_ALGO": "Ring",  # trees and switches may sum in another order
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # choose kernels without timing them
}


class BatchConfig(Section):
    """Batch sizes: the global batch determines the update, the micro-batch the memory of a rank."""

    global_batch: int = Field(default=32, ge=1, description="sequences per optimizer step, at any world size")
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=USUAL_MICRO_BATCH,
        description="maximum sequences that a rank computes at once; auto: the most that fit, halved whenever memory runs out",
    )

    @property
    def forward_batch(self) -> int:
        """Sequences of a pass without gradients."""
        return USUAL_MICRO_BATCH if self.micro_batch == "auto" else self.micro_batch


@dataclass(frozen=True)
class Division:
    """Ranks divided into copies of a sharded model; ranks from `computing` on are spare."""

    copies: int
    ranks_per_copy: int

    @property
    def computing(self) -> int:
        """Number of ranks that hold a part of the model."""
        return self.copies * self.ranks_per_copy


class ParallelConfig(Section):
    """Division of a model and its work among the ranks."""

    hidden_keys = frozenset({"pipeline", "context"})

    replicate: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="copies of the sharded model (HSDP); each copy is sharded over the ranks that share it. auto: one copy per"
        " `shard_nodes` nodes, however many nodes an elastic run has at the time",
    )
    shard_nodes: int = Field(default=1, ge=1, description="nodes over which each copy is sharded, if `replicate` is auto")
    tensor: int = Field(
        default=1,
        ge=1,
        description="ranks of a node that divide each layer's matrices, the sequences between them, and the loss, on the same"
        " samples (tensor and sequence parallelism); for models too large or batches too small for FSDP alone",
    )
    pipeline: int = Field(default=1, ge=1, description="pipeline stages; only 1 is supported")
    context: int = Field(default=1, ge=1, description="ranks that divide each sequence's attention; only 1 is supported")
    expert: int = Field(
        default=1,
        ge=1,
        description="ranks among which a layer's experts are divided, each kept whole: as many as `tensor`, or 1, with which"
        " `tensor` divides the matrices of each expert (expert parallelism)",
    )
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
    compile: bool = Field(
        default=False,
        description="compile each layer with torch.compile; later attempts and runs find the results in $ROPEWALK_CACHE/compiled",
    )
    timeout_minutes: float = Field(default=10, gt=0, description="time limit of a collective")
    gpu_model: str | None = Field(
        default=None,
        description="model of the GPUs, such as H100, whose memory and speed a dry run assumes; unset: those of this machine",
    )

    @field_validator("pipeline", "context")
    @classmethod
    def _only_one(cls, degree: int, info: ValidationInfo) -> int:
        if degree != 1:
            raise ValueError(
                f"must be 1: {info.field_name} parallelism is not supported; remove it, and divide the model by FSDP, which"
                " needs no key, or by parallel.tensor"
            )
        return degree

    def refuse_tensor(self, reason: str | None) -> None:
        """Raise ValueError if tensor parallelism is requested and there is a reason against it."""
        if self.tensor > 1 and reason is not None:
            raise ValueError(f"parallel.tensor: must be 1, since {reason}; FSDP shards the model over all ranks; remove it")

    @model_validator(mode="after")
    def _only_with_auto(self) -> Self:
        if self.shard_nodes != 1 and self.replicate != "auto":
            raise ValueError(f"shard_nodes={self.shard_nodes} has an effect with replicate=auto only: set that, or remove it")
        return self

    @model_validator(mode="after")
    def _experts_in_tensor_groups(self) -> Self:
        if self.expert not in {1, self.tensor}:
            raise ValueError(
                f"expert={self.expert} must be 1 or equal to tensor={self.tensor}, whose ranks divide the experts: set"
                f" parallel.tensor={self.expert} too, or remove parallel.expert"
            )
        if self.expert > 1 and self.compile:
            raise ValueError("compile: divided experts cannot be compiled; remove parallel.expert or parallel.compile")
        return self

    def divide(self, ranks: int, per_node: int) -> Division:
        """Divide ranks into as many copies as they can hold. Fewer ranks than one copy takes hold one all the same.

        Raises ConfigError if they are fewer than a tensor group.
        """
        if ranks < self.tensor:
            raise ConfigError(f"parallel.tensor: {counted(ranks, 'rank')} cannot form a group of {self.tensor}; start more")
        if self.replicate == "auto":
            ranks_per_copy = min(self.shard_nodes * per_node, ranks) // self.tensor * self.tensor
            return Division(ranks // ranks_per_copy, ranks_per_copy)
        groups = ranks // self.tensor
        copies = min(self.replicate, groups)
        return Division(copies, groups // copies * self.tensor)

    def uses_all(self, nodes: int, per_node: int) -> bool:
        """Return True if so many nodes form the copies that are configured, without spare ranks."""
        if self.replicate == "auto":
            return nodes % self.shard_nodes == 0
        return nodes * per_node % (self.replicate * self.tensor) == 0


def check_mesh(parallel: ParallelConfig, resources: Resources) -> None:
    """Raise ConfigError if no allowed number of nodes divides into the copies of the model, or a node into tensor groups."""
    per_node, nodes = resources.local_world_size, resources.nodes
    if per_node % parallel.tensor:
        raise ConfigError(
            f"parallel.tensor: {counted(per_node, 'rank')} of a node cannot be divided into groups of {parallel.tensor}, which"
            f" must not span nodes; set it to a divisor, or set resources.gpus or resources.ranks_per_node to a multiple of it"
        )
    if any(parallel.uses_all(count, per_node) for count in range(nodes.least, nodes.most + 1)):
        return
    if parallel.replicate == "auto":
        each = parallel.shard_nodes
        raise ConfigError(
            f"parallel.shard_nodes: {counted(nodes.most, 'node')} (resources.nodes={nodes}) cannot be divided into copies of the"
            f" model on {each} nodes each; set parallel.shard_nodes to a divisor of the nodes, or resources.nodes to a multiple"
            f" of {each}, or to a range that contains one"
        )
    copies, ranks = parallel.replicate, nodes.most * per_node
    raise ConfigError(
        f"parallel.replicate: {counted(ranks, 'rank')} cannot be divided into {copies} copies of the model"
        f" (resources.nodes={nodes} with {counted(per_node, 'rank')} each); remove parallel.replicate, or set resources.gpus or"
        f" resources.ranks_per_node to a multiple of {copies * parallel.tensor}"
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
    float8: Literal["rowwise", "emulated"] | None = Field(
        default=None,
        description="compute the layers' matrix products in float8 with a scale for each row, by torchao (the extra float8):"
        " faster on large layers with parallel.compile, on GPUs from Ada or Hopper on. emulated: with the same rounding on any"
        " device, slowly. Weights and checkpoints stay fp32; unset: as `compute`",
    )
    float8_layers: list[str] = Field(
        default=["*"],
        min_length=1,
        description="patterns of names within a decoder layer, such as mlp.*, of the linear layers to compute in float8; layers"
        f" whose sizes are not multiples of {FLOAT8_MULTIPLE}, embeddings and the head are left out",
    )
    deterministic: bool = Field(
        default=False,
        description="use deterministic kernels and reductions only, so that equal runs on equal GPUs are bit-identical; slower."
        " CPUs are deterministic without it",
    )

    def refuse_float8(self, reason: str | None) -> None:
        """Raise ValueError if float8 is requested and there is a reason against it."""
        if self.float8 is not None and reason is not None:
            raise ValueError(f"precision.float8: must be unset, since {reason}; remove it")

    def environment(self) -> dict[str, str]:
        """Return the variables that CUDA's libraries read when they start."""
        return dict(DETERMINISTIC_ENVIRONMENT) if self.deterministic else {}


class CheckpointConfig(Section):
    """Checkpoint interval, location and retention."""

    every_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    keep: int = Field(default=3, ge=1, description="complete checkpoints to keep")
    path: DataPath | None = Field(default=None, description="directory or fsspec URL; unset: checkpoints/ of the run")
    memory_every_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="steps between two copies of the state in the memory of the nodes, each on two of them: a lost rank or node"
        " costs at most so many steps (1: none with metrics), and nothing is read from storage. auto: the fewest that take at"
        " most 1% of the time; unset: no copies",
    )
    patience_seconds: float = Field(
        default=120, gt=0, description="seconds that storage may be unavailable before the attempt fails"
    )
