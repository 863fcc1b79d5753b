"""Memory of a rank by kind, computed from the shapes of a model, its division among the ranks, and the micro-batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from ropewalk.cluster.section import Section
from ropewalk.jobs.training.loop.config import TrainingConfig

SMALL_BYTES = 2 << 30  # limit of gathered parameters or gradients on a rank for `auto`, as in sharding/fsdp.py
CHUNK_TOKENS, CHUNK_NUMBERS = 256, 1 << 24  # of logits, as in loop/head.py
FP32 = 4

Mode = Literal["none", "selective", "full"]  # of activation checkpointing
MODES: tuple[Mode, ...] = ("none", "selective", "full")


class Unit(Section):
    """Shapes of the parameters that FSDP gathers in one collective."""

    trained: list[tuple[int, ...]]
    frozen: list[tuple[int, ...]] = Field(default=[])

    def numbers(self, parts: int = 1, *, trained_only: bool = False) -> int:
        """Return the numbers that one of `parts` ranks holds: rows are divided, and shards are padded to equal size."""
        shapes = self.trained if trained_only else [*self.trained, *self.frozen]
        return sum(math.ceil(rows / parts) * math.prod(others) for rows, *others in shapes)


class ModelShape(Section):
    """A model as forecasts need it."""

    units: list[Unit]  # of FSDP; the first is the rest of the model: embeddings, norm and head
    hidden: int
    layers: int
    vocabulary: int  # rows of the head; 0: it has none
    head_trained: bool
    seq_len: int
    frozen: list[Unit] = Field(default=[])  # of a teacher or reference beside it
    activations: dict[Mode, tuple[int, int]] = Field(default={})  # bytes of one sample: between forward and backward, and at most
    problem: str = ""  # why a mode is missing

    def numbers(self, parts: int = 1, *, trained_only: bool = False) -> int:
        """Return the numbers that one of `parts` ranks holds."""
        return sum(unit.numbers(parts, trained_only=trained_only) for unit in self.units)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The division of a model among ranks, and the formats of its numbers."""

    config: TrainingConfig
    shards: int  # ranks that share a copy of the model, those of tensor groups included
    gpu: bool
    matrices: int = 0  # trained numbers in matrices of the layers, which Muon updates
    adapter: bool = False  # frozen parameters are in no checkpoint

    @property
    def bf16(self) -> bool:
        """The format of computation; of GPUs that are not known to be older than Ampere."""
        compute = self.config.precision.compute
        return compute == "bf16" or (compute == "auto" and self.gpu)

    @property
    def compute_bytes(self) -> int:
        return 2 if self.bf16 else FP32

    def reshards(self, units: Sequence[Unit]) -> bool:
        choice, numbers = self.config.parallel.reshard, sum(unit.numbers() for unit in units)
        return choice == "always" or (choice == "auto" and numbers * (2 if self.gpu else FP32) > SMALL_BYTES)

    def accumulates_sharded(self, model: ModelShape) -> bool:
        choice = self.config.parallel.accumulate
        return choice == "sharded" or (choice == "auto" and model.numbers(trained_only=True) * FP32 > SMALL_BYTES)


class Passes(NamedTuple):
    """The micro-batches of a step on a rank: samples in each, and their number."""

    micro_batch: int
    passes: int

    @classmethod
    def of(cls, global_batch: int, data_ranks: int, micro_batch: int) -> "Passes":
        samples = math.ceil(global_batch / data_ranks)
        return cls(min(micro_batch, samples), math.ceil(samples / micro_batch))


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank by kind, at the moment of a step when their sum is largest."""

    kinds: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


def rank_memory(model: ModelShape, layout: Layout, batch: Passes) -> RankMemory:
    """Return the memory of a rank; activations that are unknown count as none."""
    lasting = _lasting(model, layout)
    sums = (lasting | moment for moment in _moments(model, layout, batch))
    moments = [RankMemory({name: size for name, size in kinds.items() if size}) for kinds in sums]
    return max(moments, key=lambda memory: memory.total)


def largest_micro_batch(model: ModelShape, layout: Layout, samples: int, memory_bytes: float) -> int:
    """Return the largest micro-batch that fits, as a part of a rank's `samples` in halves; at least 1."""
    micro_batch = samples
    while micro_batch > 1:
        if rank_memory(model, layout, Passes.of(samples, 1, micro_batch)).total <= memory_bytes:
            break
        micro_batch = math.ceil(micro_batch / 2)
    return micro_batch


def _lasting(model: ModelShape, layout: Layout) -> dict[str, int]:
    """Return what a rank holds all the time."""
    shards, precision = layout.shards, layout.config.precision
    trained = model.numbers(shards, trained_only=True)
    moments = 2 * trained - (math.ceil(layout.matrices / shards) if layout.config.optim.name == "muon" else 0)
    kinds = {
        "parameters": model.numbers(shards) * FP32,
        "optimizer": moments * (2 if precision.optimizer == "bf16" else FP32),
        "average": trained * FP32 if layout.config.ema is not None else 0,
    }
    if model.frozen:  # its matrices are stored in the format of computation
        numbers = sum(unit.numbers(shards) for unit in model.frozen) + _gathered(model.frozen, layout)
        kinds["frozen model"] = numbers * layout.compute_bytes
    if not layout.gpu:  # a GPU's is in the memory of the host
        of_model = trained if layout.adapter else model.numbers(shards)
        kinds["checkpoint copy"] = of_model * FP32 + kinds["optimizer"] + kinds["average"]
        if layout.config.checkpoint.memory_every_steps is not None:
            kinds["copies in memory"] = copies_on_node(layout.config) * kinds["checkpoint copy"]
    return kinds


def _gathered(units: Sequence[Unit], layout: Layout) -> int:
    """Return the numbers that are gathered at once: all, or the first unit, a layer, the next one, and a buffer."""
    root, *layers = (unit.numbers(layout.shards) * layout.shards for unit in units)
    return root + (3 * max(layers, default=0) if layout.reshards(units) else sum(layers))


def copies_on_node(config: TrainingConfig) -> int:
    """Return how often the memory of a node has what its ranks save: the newest two copies, and those of another node."""
    return 4 if config.resources.allocated_nodes.most > 1 else 2


def _moments(model: ModelShape, layout: Layout, batch: "Passes") -> Iterator[dict[str, int]]:
    """Yield what comes on top at the moments of a step when memory can be largest."""
    shards, compute_bytes = layout.shards, layout.compute_bytes
    root, *layers = (unit.numbers(shards) * shards * compute_bytes for unit in model.units)
    largest, gathered = max(layers, default=0), _gathered(model.units, layout) * compute_bytes
    root_gradient, *gradients = (unit.numbers(shards, trained_only=True) * shards for unit in model.units)
    local = model.numbers(shards, trained_only=True) * FP32
    tensor = layout.config.parallel.tensor  # each rank of such a group has its part of matrices, hidden states and logits
    earlier = 0
    if batch.passes > 1:
        whole = (root_gradient + sum(gradients)) * FP32
        earlier = local * tensor if layout.accumulates_sharded(model) else whole
    tokens = batch.micro_batch * model.seq_len
    mode = layout.config.parallel.activation_checkpointing
    saved, most = model.activations.get(mode, (0, 0))
    hidden = tokens * model.hidden * compute_bytes
    inputs = (tensor - 1) * hidden * 2 * (model.layers if mode == "none" else 1)  # of attention and feed-forward: not divided
    if layout.config.parallel.expert > 1:  # ranks with whole experts have rows for all tokens; the others count as whole too
        saved, most, inputs = saved * tensor, most * tensor, 0
    head = model.vocabulary * model.hidden * FP32 if model.head_trained else 0  # its gradient, computed with the loss
    loss, logits = head + hidden, logits_bytes(model, tokens, bf16=layout.bf16)
    both = compute_bytes + FP32  # a gradient, and its copy for the collective
    of_layer, of_root = max(gradients, default=0) * both, root_gradient * both
    at_loss = {
        "gathered": gathered,
        "gradients": earlier,
        "activations": batch.micro_batch * saved + inputs,
        "logits": loss + logits,
    }
    in_backward = {"gradients": earlier + of_layer, "activations": batch.micro_batch * most + inputs, "logits": loss}
    at_end = {"gathered": root + largest, "gradients": of_root, "activations": hidden}  # layers are freed one by one
    for kinds in (at_loss, {"gathered": gathered, **in_backward}, at_end):
        part = {name: size // tensor for name, size in kinds.items()}
        yield {**part, "gradients": part["gradients"] + (local if kinds is at_end else 0)}


def logits_bytes(model: ModelShape, tokens: int, *, bf16: bool) -> int:
    """Return the bytes of a chunk of logits, as loop/head.py cuts them: in fp32, and with bf16 in that too, with a gradient."""
    if not model.vocabulary:
        return 0
    most = max(CHUNK_TOKENS, max(CHUNK_NUMBERS, tokens * model.hidden) // model.vocabulary)
    chunk = math.ceil(tokens / math.ceil(tokens / most))
    return chunk * model.vocabulary * (8 if bf16 else FP32)
