"""Bytes that a step sends over the links of a node, and its duration on known devices."""

from dataclasses import dataclass

from ropewalk.jobs.training.loop.devices import Device
from ropewalk.jobs.training.loop.forecast.memory import FP32, Layout, ModelShape, Passes

EFFICIENCY = 0.4  # of the peak that large models reach: MFU in published runs on H100 and A100 is 0.35 to 0.5


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of a step: each rank sends so many within its node, and each node so many to others."""

    within_node: float  # of a rank
    between_nodes: float  # of a node


def step_traffic(model: ModelShape, layout: Layout, batch: Passes, *, copies: int, local_ranks: int) -> Traffic:
    """Return what a step sends, with ring algorithms: a ring through several nodes leaves each node once."""
    shards = layout.shards
    each = layout.compute_bytes
    reduced = 2 if layout.config.precision.reduce == "bf16" else FP32
    gathers = 1 if not layout.reshards(model.units) else 2 * batch.passes
    reductions = batch.passes if layout.accumulates_sharded(model) else 1
    trained = model.numbers(trained_only=True)
    tensor = layout.config.parallel.tensor
    gathered = (gathers * model.numbers() * each + reductions * trained * reduced) / tensor
    ring = (shards // tensor - 1) / (shards // tensor) * gathered
    recomputed = 3 if layout.config.parallel.activation_checkpointing != "none" else 0
    # each layer gathers and scatters twice, forward and backward; a reduction, of the embedding and of the head, counts as two
    exchanges = (8 + recomputed) * model.layers + 6
    states = exchanges * model.hidden * batch.passes * batch.micro_batch * model.seq_len * each * (tensor - 1) / tensor
    copied = 2 * (copies - 1) / copies * trained / shards * reduced * reductions
    ranks_of_copy = min(shards, local_ranks)  # on one node
    rings = max(1, local_ranks // shards)  # that pass through a node, one of each copy on it
    across = (ring * rings if shards > local_ranks else 0.0) + (copied * ranks_of_copy if shards * copies > local_ranks else 0.0)
    return Traffic(within_node=states + (ring if min(shards, local_ranks) > 1 else 0.0), between_nodes=across)


def step_seconds(
    model: ModelShape, layout: Layout, device: Device, traffic: Traffic, *, tokens: int, world_size: int, local_ranks: int
) -> tuple[float, float]:
    """Return the seconds of computation and of communication in a step of so many tokens over all ranks."""
    recomputed = {"none": 0.0, "selective": 0.0, "full": 2.0}[layout.config.parallel.activation_checkpointing]
    # 6N for the matrices and 12·L·h·T for attention (PaLM, appendix B); a frozen matrix has no gradient of its own
    trained_share = model.numbers(trained_only=True) / model.numbers()
    per_token = (4 + 2 * trained_share + recomputed) * model.numbers() + 12 * model.layers * model.hidden * model.seq_len
    compute = per_token * tokens / world_size / (device.flops * EFFICIENCY)
    links = traffic.within_node / device.within_node + traffic.between_nodes / (device.between_nodes * local_ranks)
    return compute, links
