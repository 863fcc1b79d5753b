"""Who draws the chunks of a round: the ranks themselves, or rollout workers beside them."""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.heartbeat import Phase
from ropewalk.jobs.training.align.grpo.chunks import ChunkMaker
from ropewalk.jobs.training.align.grpo.engines import answering
from ropewalk.jobs.training.align.grpo.orders import Order, Orders
from ropewalk.jobs.training.align.grpo.workers import RolloutWorkers
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.rollouts.generate import gathered
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, chunk_of, rollouts_folder
from ropewalk.jobs.training.rollouts.sampling import Draw
from ropewalk.sharding.config import ParallelConfig
from ropewalk.sharding.fsdp import should_reshard_after_forward
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

Files = list[tuple[str, bytes]]  # names and contents of chunks
LOOK_SECONDS, TURN_SECONDS = 0.02, 0.5


class Drawer(Protocol):
    """Draws chunks; all ranks call it together."""

    ahead: bool  # whether it draws while the ranks learn

    def order(self, order: Order, model: nn.Module, step: int) -> None:
        """Let chunks be drawn from now on, if that can be done while the ranks do something else."""
        ...

    def refresh(self, model: nn.Module, step: int) -> None:
        """Let what is drawn while the ranks do something else be drawn by this step's policy from now on."""
        ...

    def draw(self, one: Round, order: Order, chunks: Sequence[list[Draw]], model: nn.Module, step: int) -> Files:
        """The chunks of an order, the same on every rank; some may be missing if the run must stop, but for a validation."""
        ...


class RankDrawer:
    """Each rank draws its share, by the policy as it lies on the mesh."""

    ahead = False

    def __init__(
        self,
        context: JobContext,
        config: GrpoConfig,
        group: Group,
        parallel: ParallelConfig,
        chunks: ChunkMaker,
        *,
        seed: int,
        ends: frozenset[int],
        held_out: ChunkMaker | None = None,
    ) -> None:
        self._held_out = held_out
        self._context, self._config, self._group, self._parallel = context, config, group, parallel
        self._chunks, self._seed, self._ends = chunks, seed, ends

    def order(self, order: Order, model: nn.Module, step: int) -> None:
        """Nothing can be done meanwhile."""

    def refresh(self, model: nn.Module, step: int) -> None:
        """Nothing is drawn meanwhile."""

    def draw(self, one: Round, order: Order, chunks: Sequence[list[Draw]], model: nn.Module, step: int) -> Files:
        """Draw and write this rank's chunks, until its node must stop. While one is rewarded the next one is drawn."""
        files, before = [], None
        maker = self._held_out if order.held_out else self._chunks
        assert maker is not None, "held-out prompts are asked where there are some"
        with gathered(model, reshard=should_reshard_after_forward(model, self._parallel, self._group.device)):
            answer = answering(model, self._config, self._seed, self._ends)
            for number in order.numbers[self._group.rank :: self._group.world_size]:
                if self._context.stop_requested() and not order.held_out:
                    break
                answered = maker.answer(chunks[number], answer)
                if before is not None:
                    files.append(one.put(before[0], maker.rewarded(before[1], step)))
                before = ChunkName(order.attempt, number), answered
            if before is not None:
                files.append(one.put(before[0], maker.rewarded(before[1], step)))
        return [file for part in self._group.all_gather_object(files) for file in part]


class WorkerDrawer:
    """Workers draw, by the weights that the ranks publish; the ranks wait, or learn meanwhile."""

    ahead = True

    def __init__(self, context: JobContext, group: Group, count: int) -> None:
        """Start `count` workers on each node."""
        self._context, self._group = context, group
        self._orders = Orders(rollouts_folder(context.run), context.fence)
        if group.is_main:
            self._orders.begin()
        starters = [rank for rank, local in enumerate(group.all_gather_object(context.local_rank)) if local == 0]
        self._workers: RolloutWorkers | None = None
        if group.rank in starters:
            first = starters.index(group.rank) * count
            self._workers = RolloutWorkers(context, self._orders.folder, first, count, len(starters) * count)
        self._published = -1

    def order(self, order: Order, model: nn.Module, step: int) -> None:
        """Publish this step's policy, and give the order."""
        self.refresh(model, step)
        if self._group.is_main:
            self._orders.give(order)

    def refresh(self, model: nn.Module, step: int) -> None:
        """Publish this step's policy, once."""
        if self._published != step:
            self._orders.publish(model, step, writes=self._group.is_main)
            self._published = step

    def draw(self, one: Round, order: Order, chunks: Sequence[list[Draw]], model: nn.Module, step: int) -> Files:
        """Wait until the chunks are there. The ranks meet twice a second: a collective that waits for long would be an error."""
        self.order(order, model, step)
        while not self._group.broadcast_object(self._look(one, order) if self._group.is_main else None):
            self._context.heart.beat(Phase.ROLLOUT, step)
            if self._workers is not None:
                self._workers.check()
        if self._workers is not None:
            self._workers.well()
        found: Files | None = None
        if self._group.is_main:
            self._orders.done(order)
            wanted = {ChunkName(order.attempt, number) for number in order.numbers}
            found = [file for file in one.chunks() if chunk_of(file[0]) in wanted]
        return self._group.broadcast_object(found)

    def _look(self, one: Round, order: Order) -> bool:
        """Whether all chunks are there, or the run must stop; looks for a while."""
        wanted = {ChunkName(order.attempt, number) for number in order.numbers}
        deadline = time.monotonic() + TURN_SECONDS
        while True:
            stops = self._context.stop_requested() and not order.held_out
            if stops or wanted <= {chunk_of(name) for name in one.names()}:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """End the workers of this rank."""
        if self._workers is not None:
            self._workers.close()
