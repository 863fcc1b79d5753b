"""A rank of a training in which bits are flipped, and what its events say of them."""

import itertools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ropewalk.cluster.memory.server import MemoryServer
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.jobs.training.pretrain.job import main
from ropewalk.sharding.checkpoints.staging import local_tensor
from ropewalk.sharding.checkpoints.state import MODEL
from tests.ranks import run_ranks

WEIGHTS, OPTIMIZER, GRADIENT, COPY, PRODUCT, FAILURE = "weights", "optimizer", "gradient", "copy", "product", "failure"
SPOILT_PRODUCTS = 10  # every one of so many
STALE, DROPPED, DUPLICATED, REORDERED = "stale", "dropped", "duplicated", "reordered"  # faults of a whole gradient
GRADIENTS = (GRADIENT, STALE, DROPPED, DUPLICATED, REORDERED)


@dataclass(frozen=True)
class Flip:
    """A bit of one rank that is flipped once: after `step` steps, or in the gradient of the next one.

    With PRODUCT it is a bit in every tenth matrix product of a layer, from that step on until the run goes back. STALE,
    DROPPED, DUPLICATED and REORDERED replace its largest piece of the gradient by that of the step before, zeros, its double, or
    its numbers in the opposite order. FAILURE ends a group of one rank instead; the next one follows in the same process.
    """

    where: str
    step: int
    rank: int
    seed: int


class PlantedError(Exception):
    """The end of a group."""


def train_with(run: RunDir, ranks: int, flips: Sequence[Flip]) -> None:
    """Train to the end on ranks that are a node each."""
    run.begin_attempt()
    run_ranks(train_rank, ranks, run.path, list(flips))


def train_rank(rank: int, size: int, port: int, path: Path, flips: list[Flip]) -> None:
    """Train as one of these ranks."""
    if size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    run = RunDir(path)
    memory = path / f"memory-{rank}"
    memory.mkdir()
    server = MemoryServer(memory, "127.0.0.1", "of the run")
    context = JobContext(run=run, attempt=1, group=1, rank=rank, world_size=size, memory=server.access)
    if rank == 0:
        context.fence.claim()
    plant([flip for flip in flips if flip.rank == rank], memory)
    try:
        main(context)
    except PlantedError:
        context = replace(context, group=2)
        context.fence.claim()
        main(context)


def plant(flips: list[Flip], memory: Path) -> None:
    """Flip bits in the steps of this process."""
    backward, update, forward = TrainStep.backward, TrainStep.update, nn.Linear.forward
    steps, spoilt, earlier = [0], list[random.Random](), list[torch.Tensor]()
    products = itertools.count(1)

    def planting_backward(self: TrainStep, batch: Any, step: int) -> Any:
        for flip in [each for each in flips if each.step == step and each.where not in GRADIENTS]:
            flips.remove(flip)
            if flip.where == FAILURE:
                raise PlantedError
            if flip.where == PRODUCT:
                spoilt.append(random.Random(flip.seed))
                continue
            if flip.where == COPY:
                _flip_in_file(memory, flip.seed)
                continue
            is_weight = flip.where == WEIGHTS
            tensors = [local_tensor(each) for name, each in self.state.tensors.items() if name.startswith(MODEL) == is_weight]
            flip_bit(tensors, flip.seed)
        if step < steps[-1]:
            spoilt.clear()
        steps[-1] = step
        return backward(self, batch, step)

    def planting_product(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        output = forward(self, x)
        for draw in spoilt if next(products) % SPOILT_PRODUCTS == 0 else ():
            bits = output.detach().view(-1).view(torch.int32)
            bits[draw.randrange(bits.numel())] ^= 1 << draw.randrange(10, 23)
        return output

    def planting_update(self: TrainStep, *arguments: Any) -> None:
        gradients = self._gradients(self._parameters)
        largest = max(gradients, key=torch.numel)
        now = largest.clone()
        for flip in [each for each in flips if each.step == self.state.progress.step and each.where in GRADIENTS]:
            flips.remove(flip)
            if flip.where == GRADIENT:
                flip_bit(gradients, flip.seed)
            else:
                replaced = {STALE: earlier[0], DROPPED: torch.zeros(()), DUPLICATED: 2 * now, REORDERED: now.flip(0)}
                largest.copy_(replaced[flip.where])
        earlier[:] = [now]
        update(self, *arguments)

    nn.Linear.forward = planting_product  # type: ignore[method-assign]
    TrainStep.backward, TrainStep.update = planting_backward, planting_update  # type: ignore[method-assign]


def flip_bit(tensors: Sequence[torch.Tensor], seed: int) -> None:
    """Flip a bit of fp32 numbers that is drawn by chance."""
    draw = random.Random(seed)
    tensor = draw.choices(tensors, [each.numel() for each in tensors])[0]
    bits = tensor.view(-1).view(torch.int32)
    bits[draw.randrange(bits.numel())] ^= 1 << draw.randrange(31)


def _flip_in_file(memory: Path, seed: int) -> None:
    """Flip a bit of a rank's file of the newest copy in a node's memory."""
    draw = random.Random(seed)
    writers = sorted({path.parent for path in memory.glob("*/*.safetensors")})
    path = max(draw.choice(writers).glob("*.safetensors"))
    with path.open("r+b") as file:
        position = draw.randrange(path.stat().st_size)
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << draw.randrange(8)]))
