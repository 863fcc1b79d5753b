"""The source of GRPO: rollouts generated before each step by all ranks together, and written to the ledger first."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ropewalk.cluster.errors import DataError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.grpo.chunks import issued_rows, split_into_chunks
from ropewalk.jobs.training.align.grpo.generators import RolloutGenerator
from ropewalk.jobs.training.align.grpo.prompts import Prompts
from ropewalk.jobs.training.align.grpo.requests import ChunkRequest
from ropewalk.jobs.training.align.grpo.source import Rollout, RolloutSource, advantages, has_no_signal, total_reward
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.rollouts.generate import Draw
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, arrow_table, parse_chunk_name, prune, update_marks
from ropewalk.jobs.training.rollouts.resume import Parts, load_round, resume_ledger
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class GrpoSource(RolloutSource):
    """Rollouts that are generated before each step, by all ranks together."""

    context: JobContext
    config: GrpoConfig
    group: Group
    global_batch: int
    steps: int  # of the whole run
    prompts: Prompts
    generator: RolloutGenerator
    tokens_per_sample: int
    oldest_position: Callable[[], int]  # of the oldest checkpoint to which the run may roll back
    _requested: set[int] = field(default_factory=set, init=False)  # positions of rounds requested from workers
    _expected: int | None = field(default=None, init=False)  # expected position of the next step, unless the run rolls back

    def __post_init__(self) -> None:
        super().__init__(tokens_per_sample=self.tokens_per_sample, num_rewards=len(self.config.rewards))

    def prepare(self, state: TrainState) -> None:
        step, position = state.progress.step, state.progress.position
        self._sync_ledger(position, step)
        if self.generator.asynchronous:
            self._request_ahead(position, state.model, step)
            self.put(position, self._rollouts_of(self._round(position), state.model, step, trained_by=step))
        else:
            self._generate_now(position, state.model, step)
        self._expected = position + self.global_batch

    def committed(self, position: int, step: int) -> None:
        run, fence = self.context.run, self.context.fence
        update_marks(run, fence, position, step)
        prune(run, fence, min(self.oldest_position(), position - self.config.keep_steps * self.global_batch))

    def _sync_ledger(self, position: int, step: int) -> None:
        """Bring the ledger in line with the position at which this attempt starts, or to which the run rolled back."""
        if self.group.is_main and self._expected != position:
            resume_ledger(self.context.run, self.context.fence, position, step, rolled_back=self._expected is not None)
        self.group.barrier()

    def _generate_now(self, position: int, model: nn.Module, step: int) -> None:
        """Generate the round, and those of the following steps that train on rollouts of this policy too."""
        steps = self.config.max_staleness + 1
        for ahead in range(min(steps - step % steps, self.steps - step)):
            start = position + ahead * self.global_batch
            rollouts = self._rollouts_of(self._round(start), model, step, trained_by=step + ahead)
            if ahead == 0:
                self.put(position, rollouts)
                if steps > 1 and self._is_complete(position + self.global_batch):
                    break  # generated before, by an older policy

    def _request_ahead(self, position: int, model: nn.Module, step: int) -> None:
        """Let workers generate this round and those of the next steps, with the newest policy when they come to it."""
        for ahead in range(min(self.config.max_staleness + 1, self.steps - step)):
            start = position + ahead * self.global_batch
            if start not in self._requested and not self._is_complete(start):
                slots = list(self._slots(start))
                numbers = list(range(len(split_into_chunks(slots, 0, self.config))))
                if self.group.is_main:
                    self._round(start).make()
                    self._round(start).remove_damaged()
                self.generator.request(ChunkRequest(start, 0, slots, numbers), model, step)
            self._requested.add(start)
        if self.config.max_staleness and step > 0:
            self.generator.publish_policy(model, step)

    def _round(self, position: int) -> Round:
        return Round(self.context.run, self.context.fence, position)

    def _slots(self, position: int) -> range:
        size = self.config.group_size
        return range(position // size, (position + self.global_batch) // size)

    def _is_complete(self, position: int) -> bool:
        ledger_round = Round(self.context.run, self.context.fence, position)
        return bool(self.group.broadcast_object(ledger_round.manifest() is not None if self.group.is_main else None))

    # --- a round

    def _rollouts_of(self, ledger_round: Round, model: nn.Module, step: int, *, trained_by: int) -> list[Rollout]:
        """Return the rollouts of a round: from the ledger, and generated for what it lacks."""
        complete, parts = self._load_round(ledger_round, step)
        size = self.config.group_size
        slots = self._slots(ledger_round.position)
        chosen: dict[int, list[dict[str, Any]]] = {}
        open_slots: Sequence[int] = slots
        for attempt in range(self.config.max_tries if self.config.keys.dynamic_sampling else 1):
            rows = self._rows_of_try(ledger_round, split_into_chunks(open_slots, attempt, self.config), parts, model, step)
            chosen |= {slot: rows[number * size : (number + 1) * size] for number, slot in enumerate(open_slots)}
            no_signal = has_no_signal(np.array([self._total(row) for row in rows]), size)
            open_slots = [slot for slot, again in zip(open_slots, no_signal, strict=True) if again]
            if not open_slots:
                break
        if not complete:
            self._commit(ledger_round, parts, trained_by)
        return self._to_rollouts([row for slot in slots for row in chosen[slot]], step)

    def _load_round(self, ledger_round: Round, step: int) -> tuple[bool, Parts]:
        """Return (the round is complete in the ledger, its usable chunks)."""
        complete, parts = load_round(ledger_round, self.group)
        oldest = step - self.config.max_staleness
        return complete, {key: part for key, part in parts.items() if part[1]["policy_version"][0].as_py() >= oldest or complete}

    def _rows_of_try(
        self, ledger_round: Round, chunks: list[list[Draw]], parts: Parts, model: nn.Module, step: int
    ) -> list[dict[str, Any]]:
        """Return the rows of one try, in order; those that `parts` lacks are generated and added to it."""
        names = [ChunkName(chunks[0][0].attempt, number) for number in range(len(chunks))]
        missing = [number for number, name in enumerate(names) if name not in parts]
        if missing:
            if self.group.is_main:
                ledger_round.issue(
                    names[0].attempt, issued_rows([draw for number in missing for draw in chunks[number]], self.prompts, step)
                )
            slots = list(dict.fromkeys(draw.slot for chunk in chunks for draw in chunk))
            request = ChunkRequest(ledger_round.position, names[0].attempt, slots, missing)
            for name, raw in self.generator.generate(ledger_round, request, chunks, model, step):
                parts[parse_chunk_name(name)] = name, arrow_table(raw)
            if any(name not in parts for name in names):
                raise StopRequested("stopped while rollouts were generated")
        return [row for name in names for row in parts[name][1].to_pylist()]

    def _commit(self, ledger_round: Round, parts: Parts, step: int) -> None:
        """Complete the round, and report rewards that failed. Raises DataError if all did, or none may."""
        if self.group.is_main:
            ledger_round.commit([parts[key][0] for key in sorted(parts)], step)
        failed = Counter[tuple[str, str]]()
        count = 0
        for _, table in parts.values():
            for outcomes in table["outcomes"].to_pylist():
                count += 1
                named = zip(self.config.rewards, outcomes, strict=True)
                failed.update((reward.label, outcome) for reward, outcome in named if outcome not in {"ok", "nothing"})
        if self.group.is_main:
            for (name, outcome), number in failed.items():
                log.warning("step %d: reward %s failed for %d of %d answers: %s", step + 1, name, number, count, outcome)
                self.context.run.event("reward_failed", step=step + 1, reward=name, outcome=outcome, answers=number, of=count)
        if failed and (self.config.on_failed_reward == "error" or max(failed.values()) == count):
            (name, outcome), number = failed.most_common(1)[0]
            raise DataError(
                f"rewards: {name} failed for {number} of {count} answers of step {step + 1}: {outcome}; fix it"
                + ("" if number == count else ", or set grpo.on_failed_reward to drop or zero")
            )

    # --- training data

    def _total(self, row: dict[str, Any]) -> float:
        return total_reward(row["rewards"], row["outcomes"], self.config.rewards, zero=self.config.on_failed_reward == "zero")

    def _to_rollouts(self, rows: list[dict[str, Any]], step: int) -> list[Rollout]:
        rewards = np.array([self._total(row) for row in rows])
        advantages_N = advantages(rewards, self.config.group_size, self.config.keys.scale)
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
            for row, reward, advantage in zip(rows, rewards, advantages_N, strict=True)
        ]
