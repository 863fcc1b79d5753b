"""Generators of rollouts: the ranks themselves, or rollout workers beside them."""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import Phase
from ropewalk.jobs.training.align.grpo.chunks import ChunkGenerator
from ropewalk.jobs.training.align.grpo.engines import generate_function
from ropewalk.jobs.training.align.grpo.requests import ChunkRequest, ChunkRequests
from ropewalk.jobs.training.align.grpo.workers import RolloutWorkers
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.rollouts.generate import Draw, ready_to_generate
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, parse_chunk_name, rollouts_folder
from ropewalk.sharding.config import ParallelConfig
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

Files = list[tuple[str, bytes]]  # names and contents of chunks
POLL_SECONDS, TURN_SECONDS = 0.02, 0.5


class RolloutGenerator(Protocol):
    """Generates chunks of rollouts; all ranks call every method together."""

    asynchronous: bool  # generates while the ranks train

    def request(self, request: ChunkRequest, model: nn.Module, step: int) -> None:
        """Start to generate chunks, if that is possible while the ranks do something else."""
        ...

    def publish_policy(self, model: nn.Module, step: int) -> None:
        """Generate with this step's policy from now on, if that happens while the ranks do something else."""
        ...

    def generate(
        self, ledger_round: Round, request: ChunkRequest, chunks: Sequence[list[Draw]], model: nn.Module, step: int
    ) -> Files:
        """Return the chunks of a request, the same on every rank; except in validation some may be missing on a stop."""
        ...


class RankGenerator:
    """Generation on the ranks: each generates its share with the sharded policy."""

    asynchronous = False

    def __init__(
        self,
        context: JobContext,
        config: GrpoConfig,
        group: Group,
        parallel: ParallelConfig,
        chunks: ChunkGenerator,
        *,
        seed: int,
        ends: frozenset[int],
        held_out: ChunkGenerator | None = None,
    ) -> None:
        self._held_out = held_out
        self._context, self._config, self._group, self._parallel = context, config, group, parallel
        self._chunks, self._seed, self._ends = chunks, seed, ends

    def request(self, request: ChunkRequest, model: nn.Module, step: int) -> None:
        """Do nothing: the ranks generate when asked for the chunks."""

    def publish_policy(self, model: nn.Module, step: int) -> None:
        """Do nothing: the ranks always use the current policy."""

    def generate(
        self, ledger_round: Round, request: ChunkRequest, chunks: Sequence[list[Draw]], model: nn.Module, step: int
    ) -> Files:
        """Generate and write this rank's chunks, until its node must stop. One is rewarded while the next is generated."""
        files, before = [], None
        chunk_generator = self._held_out if request.held_out else self._chunks
        assert chunk_generator is not None, "a request for held-out prompts needs them"
        with ready_to_generate(model, self._group, self._parallel):
            answer = generate_function(model, self._config, self._seed, self._ends)
            for number in request.numbers[self._group.rank :: self._group.world_size]:
                if self._context.stop_requested() and not request.held_out:
                    break
                answered = chunk_generator.generate(chunks[number], answer)
                if before is not None:
                    files.append(ledger_round.put(before[0], chunk_generator.with_rewards(before[1], step)))
                before = ChunkName(request.attempt, number), answered
            if before is not None:
                files.append(ledger_round.put(before[0], chunk_generator.with_rewards(before[1], step)))
        return [file for part in self._group.all_gather_object(files, list[tuple[str, bytes]]) for file in part]


class WorkerGenerator:
    """Generation in workers with weights that the ranks publish; the ranks wait, or train meanwhile."""

    asynchronous = True

    def __init__(self, context: JobContext, group: Group, count: int) -> None:
        self._context, self._group = context, group
        self._requests = ChunkRequests(rollouts_folder(context.run), context.fence)
        if group.is_main:
            self._requests.begin()
        starters = [rank for rank, local in enumerate(group.all_gather_object(context.local_rank)) if local == 0]
        self._workers: RolloutWorkers | None = None
        if group.rank in starters:
            first = starters.index(group.rank) * count
            self._workers = RolloutWorkers(context, self._requests.folder, first, count, len(starters) * count)
        self._published = -1

    def request(self, request: ChunkRequest, model: nn.Module, step: int) -> None:
        self.publish_policy(model, step)
        if self._group.is_main:
            self._requests.put(request)

    def publish_policy(self, model: nn.Module, step: int) -> None:
        """Publish this step's policy, once."""
        if self._published != step:
            self._requests.publish(model, step, writes=self._group.is_main)
            self._published = step

    def generate(
        self, ledger_round: Round, request: ChunkRequest, chunks: Sequence[list[Draw]], model: nn.Module, step: int
    ) -> Files:
        """Wait for the chunks. The ranks meet twice a second, since a collective that waits longer would time out."""
        self.request(request, model, step)
        while not self._group.broadcast_object(self._poll(ledger_round, request) if self._group.is_main else None):
            self._context.heart.beat(Phase.ROLLOUT, step)
            if self._workers is not None:
                self._workers.check()
        if self._workers is not None:
            self._workers.reset_deaths()
        files: Files | None = None
        if self._group.is_main:
            self._requests.remove(request)
            wanted = {ChunkName(request.attempt, number) for number in request.numbers}
            files = [file for file in ledger_round.chunks() if parse_chunk_name(file[0]) in wanted]
        return self._group.broadcast_object(files, list[tuple[str, bytes]])

    def _poll(self, ledger_round: Round, request: ChunkRequest) -> bool:
        """Return True if all chunks exist, or the run must stop; polls for a while."""
        wanted = {ChunkName(request.attempt, number) for number in request.numbers}
        deadline = time.monotonic() + TURN_SECONDS
        while True:
            stops = self._context.stop_requested() and not request.held_out
            if stops or wanted <= {parse_chunk_name(name) for name in ledger_round.names()}:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
