"""Makes the rollouts that each step learns from, all ranks together, and keeps them in the ledger first."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from cluster.errors import DataError, StopRequested
from cluster.run.context import JobContext
from cluster.run.heartbeat import Phase
from jobs.align.rollouts.advantages import advantages, total, without_signal
from jobs.align.rollouts.chunks import Answering, ChunkMaker, cut, issued
from jobs.align.rollouts.config import GrpoConfig
from jobs.align.rollouts.generate import answer_all, gathered
from jobs.align.rollouts.ledger import ChunkName, Round, arrow_table, chunk_of, rounds, settle
from jobs.align.rollouts.prompts import Prompts
from jobs.align.rollouts.rewards.pool import RewardPool
from jobs.align.rollouts.sampling import Draw, Sampling, uniforms
from jobs.align.rollouts.source import Rollout, RolloutSource
from jobs.training.state import TrainState
from sharding.config import ParallelConfig
from sharding.fsdp import should_reshard_after_forward
from sharding.group import Group

log = logging.getLogger(__name__)

Parts = dict[ChunkName, tuple[str, pa.Table]]  # a chunk's file and rows


@dataclass(kw_only=True)
class RolloutMaker:
    """Fills the source before each step. All ranks call it together."""

    context: JobContext
    config: GrpoConfig
    group: Group
    seed: int
    global_batch: int
    steps: int  # of the whole run
    ends: frozenset[int]  # tokens that end an answer
    parallel: ParallelConfig
    prompts: Prompts
    tokenizer: Any
    pool: RewardPool
    source: RolloutSource
    _step: int = field(default=0, init=False)
    _next: int | None = field(default=None, init=False)  # the position that follows, if nothing goes back

    def __post_init__(self) -> None:
        self._chunks = ChunkMaker(self.prompts, self.tokenizer, self.pool, self._alive)

    def _alive(self) -> None:
        """Tell the agent that this rank draws, or waits for rewards, each of which has a time limit of its own."""
        self.context.heart.beat(Phase.ROLLOUT, self._step)

    def before_step(self, state: TrainState) -> None:
        """Have the rollouts of the step that is about to be learnt. Raises StopRequested where the ranks agreed to stop."""
        step, position = state.progress.step, state.progress.position
        self._step = step
        self._note_jump(position, step)
        steps = self.config.max_staleness + 1
        for ahead in range(min(steps - step % steps, self.steps - step)):  # so many learn from what this policy answers
            at = position + ahead * self.global_batch
            made = self._make(Round(self.context.run, self.context.fence, at), state.model, step, learnt_by=step + ahead)
            if ahead == 0:
                self.source.put(position, made)
                if steps > 1 and self._complete(position + self.global_batch):
                    break  # drawn before, by an older policy
        self._next = position + self.global_batch

    def settle(self, position: int, step: int) -> None:
        """A checkpoint is committed: what it has learnt is used. Rank 0 calls it."""
        settle(self.context.run, self.context.fence, position, step)

    def _note_jump(self, position: int, step: int) -> None:
        """Bring the ledger in line with where this attempt begins, or the run went back to."""
        if self.group.is_main and self._next != position:
            run, fence = self.context.run, self.context.fence
            if self._next is None:
                settle(run, fence, position, step)
            else:
                for one in rounds(run, fence):
                    if one.position < position and one.state == "done":
                        one.drop("the run went back to a checkpoint and left these samples out")
        self.group.barrier()

    def _complete(self, position: int) -> bool:
        one = Round(self.context.run, self.context.fence, position)
        return bool(self.group.broadcast_object(one.manifest() is not None if self.group.is_main else None))

    # --- a round

    def _make(self, one: Round, model: nn.Module, step: int, *, learnt_by: int) -> list[Rollout]:
        """The rollouts of a round: what the ledger has of it, and the rest drawn now."""
        complete, parts = self._found(one, step)
        size = self.config.group_size
        slots = range(one.position // size, (one.position + self.global_batch) // size)
        chosen: dict[int, list[dict[str, Any]]] = {}
        wanted: Sequence[int] = slots
        for attempt in range(self.config.max_tries if self.config.keys.dynamic_sampling else 1):
            rows = self._try(one, cut(wanted, attempt, self.config), parts, model, step)
            chosen |= {slot: rows[at * size : (at + 1) * size] for at, slot in enumerate(wanted)}
            useless = without_signal(np.array([self._total(row) for row in rows]), size)
            wanted = [slot for slot, no in zip(wanted, useless, strict=True) if no]
            if not wanted:
                break
        if not complete:
            self._commit(one, parts, learnt_by)
        return self._learnt([row for slot in slots for row in chosen[slot]], step)

    def _found(self, one: Round, step: int) -> tuple[bool, Parts]:
        """Whether the round is complete in the ledger, and the chunks of it that are."""
        found: tuple[bool, list[tuple[str, bytes]]] | None = None
        if self.group.is_main:
            one.make()
            one.withdraw()
            found = one.manifest() is not None, list(one.chunks())
        complete, files = self.group.broadcast_object(found)
        parts = {chunk_of(name): (name, arrow_table(raw)) for name, raw in files}
        oldest = step - self.config.max_staleness
        return complete, {key: part for key, part in parts.items() if part[1]["policy_version"][0].as_py() >= oldest or complete}

    def _try(self, one: Round, chunks: list[list[Draw]], parts: Parts, model: nn.Module, step: int) -> list[dict[str, Any]]:
        """The rows of one try, in order; those that `parts` lacks are drawn, and added to it."""
        names = [ChunkName(chunks[0][0].attempt, number) for number in range(len(chunks))]
        missing = [number for number, name in enumerate(names) if name not in parts]
        if missing:
            if self.group.is_main:
                one.issue(names[0].attempt, issued([draw for number in missing for draw in chunks[number]], self.prompts, step))
            mine = missing[self.group.rank :: self.group.world_size]
            made = self._draw(one, {names[number]: chunks[number] for number in mine}, model, step)
            for name, raw in (file for files in self.group.all_gather_object(made) for file in files):
                parts[chunk_of(name)] = name, arrow_table(raw)
            if any(name not in parts for name in names):
                raise StopRequested("asked to stop while rollouts were drawn")
        return [row for name in names for row in parts[name][1].to_pylist()]

    def _draw(self, one: Round, wanted: dict[ChunkName, list[Draw]], model: nn.Module, step: int) -> list[tuple[str, bytes]]:
        """Draw and write chunks, until this node must stop. While one is rewarded the next one is drawn."""
        files, before = [], None
        reshard = should_reshard_after_forward(model, self.parallel, self.group.device)
        with gathered(model, reshard=reshard):
            answering = self._answering(model)
            for name, draws in wanted.items():
                if self.context.stop_requested():
                    break
                answered = self._chunks.answer(draws, answering)
                if before is not None:
                    files.append(one.put(before[0], self._chunks.rewarded(before[1], step)))
                before = name, answered
            if before is not None:
                files.append(one.put(before[0], self._chunks.rewarded(before[1], step)))
        self.context.heart.beat(Phase.DATA, step)
        return files

    def _answering(self, model: nn.Module) -> Answering:
        config = self.config
        sampling = Sampling(config.temperature, config.top_p, config.top_k)

        def answer(prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> Any:
            numbers = uniforms(self.seed, draws, config.max_new_tokens)
            return answer_all(model, prompts, numbers, self.ends, sampling)

        return answer

    def _commit(self, one: Round, parts: Parts, step: int) -> None:
        """Complete the round, and tell of rewards that failed. Raises DataError where all did, or none may."""
        if self.group.is_main:
            one.commit([parts[key][0] for key in sorted(parts)], step)
        failed = Counter[tuple[str, str]]()
        count = 0
        for _, table in parts.values():
            for outcomes in table["outcomes"].to_pylist():
                count += 1
                named = zip(self.config.rewards, outcomes, strict=True)
                failed.update((reward.label, said) for reward, said in named if said not in {"ok", "nothing"})
        if self.group.is_main:
            for (name, said), number in failed.items():
                log.warning("step %d: reward %s failed for %d of %d answers: %s", step + 1, name, number, count, said)
                self.context.run.event("reward_failed", step=step + 1, reward=name, outcome=said, answers=number, of=count)
        if failed and (self.config.on_failed_reward == "error" or max(failed.values()) == count):
            (name, said), number = failed.most_common(1)[0]
            raise DataError(
                f"rewards: {name} failed for {number} of {count} answers of step {step + 1}: {said}; correct it"
                + ("" if number == count else ", or set grpo.on_failed_reward to drop or zero")
            )

    # --- what is learnt

    def _total(self, row: dict[str, Any]) -> float:
        return total(row["rewards"], row["outcomes"], self.config.rewards, zero=self.config.on_failed_reward == "zero")

    def _learnt(self, rows: list[dict[str, Any]], step: int) -> list[Rollout]:
        rewards = np.array([self._total(row) for row in rows])
        found = advantages(rewards, self.config.group_size, self.config.keys.scale)
        return [
            Rollout(
                prompt=self.prompts.at(row["slot"], row["attempt"]).tokens,
                tokens=row["tokens"],
                log_probs=row["log_probs"],
                truncated=row["truncated"],
                reward=float(reward),
                rewards=[math.nan if value is None else value for value in row["rewards"]],
                advantage=float(advantage),
                staleness=step - row["policy_version"],
            )
            for row, reward, advantage in zip(rows, rewards, found, strict=True)
        ]
