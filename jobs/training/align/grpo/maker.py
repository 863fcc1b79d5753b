"""Makes the rollouts that each step learns from, all ranks together, and keeps them in the ledger first."""

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
from ropewalk.jobs.training.align.grpo.advantages import advantages, total, without_signal
from ropewalk.jobs.training.align.grpo.chunks import cut, issued
from ropewalk.jobs.training.align.grpo.drawing import Drawer
from ropewalk.jobs.training.align.grpo.orders import Order
from ropewalk.jobs.training.align.grpo.prompts import Prompts
from ropewalk.jobs.training.align.grpo.source import Rollout, RolloutSource
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.loop.state import TrainState
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, arrow_table, chunk_of, prune, settle
from ropewalk.jobs.training.rollouts.resume import Parts, kept, take_up
from ropewalk.jobs.training.rollouts.sampling import Draw
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
    drawer: Drawer
    tokens_per_sample: int
    oldest_position: Callable[[], int]  # before which no checkpoint stands that the run may go back to
    _ordered: set[int] = field(default_factory=set, init=False)  # positions of rounds that workers know of
    _next: int | None = field(default=None, init=False)  # the position that follows, if nothing goes back

    def __post_init__(self) -> None:
        super().__init__(tokens_per_sample=self.tokens_per_sample, num_rewards=len(self.config.rewards))

    def prepare(self, state: TrainState) -> None:
        """Generate the rollouts of the next step, unless the ledger has them."""
        step, position = state.progress.step, state.progress.position
        self._note_jump(position, step)
        if self.drawer.ahead:
            self._order_ahead(position, state.model, step)
            self.put(position, self._make(self._round(position), state.model, step, learnt_by=step))
        else:
            self._draw_ahead(position, state.model, step)
        self._next = position + self.global_batch

    def committed(self, position: int, step: int) -> None:
        """Mark rollouts before the checkpoint as used, and prune those that no checkpoint needs any more."""
        run, fence = self.context.run, self.context.fence
        settle(run, fence, position, step)
        prune(run, fence, min(self.oldest_position(), position - self.config.keep_steps * self.global_batch))

    def _note_jump(self, position: int, step: int) -> None:
        """Bring the ledger in line with where this attempt begins, or the run went back to."""
        if self.group.is_main and self._next != position:
            take_up(self.context.run, self.context.fence, position, step, went_back=self._next is not None)
        self.group.barrier()

    def _draw_ahead(self, position: int, model: nn.Module, step: int) -> None:
        """Draw the round, and those of the steps that learn from what this policy answers too."""
        steps = self.config.max_staleness + 1
        for ahead in range(min(steps - step % steps, self.steps - step)):
            at = position + ahead * self.global_batch
            made = self._make(self._round(at), model, step, learnt_by=step + ahead)
            if ahead == 0:
                self.put(position, made)
                if steps > 1 and self._complete(position + self.global_batch):
                    break  # drawn before, by an older policy

    def _order_ahead(self, position: int, model: nn.Module, step: int) -> None:
        """Let workers draw this round and those of the next steps, by the newest policy that there is when they come to it."""
        for ahead in range(min(self.config.max_staleness + 1, self.steps - step)):
            at = position + ahead * self.global_batch
            if at not in self._ordered and not self._complete(at):
                slots = list(self._slots(at))
                numbers = list(range(len(cut(slots, 0, self.config))))
                if self.group.is_main:
                    self._round(at).make()
                    self._round(at).remove_damaged()
                self.drawer.order(Order(at, 0, slots, numbers), model, step)
            self._ordered.add(at)
        if self.config.max_staleness and step > 0:
            self.drawer.refresh(model, step)

    def _round(self, position: int) -> Round:
        return Round(self.context.run, self.context.fence, position)

    def _slots(self, position: int) -> range:
        size = self.config.group_size
        return range(position // size, (position + self.global_batch) // size)

    def _complete(self, position: int) -> bool:
        one = Round(self.context.run, self.context.fence, position)
        return bool(self.group.broadcast_object(one.manifest() is not None if self.group.is_main else None))

    # --- a round

    def _make(self, one: Round, model: nn.Module, step: int, *, learnt_by: int) -> list[Rollout]:
        """The rollouts of a round: what the ledger has of it, and the rest drawn now."""
        complete, parts = self._found(one, step)
        size = self.config.group_size
        slots = self._slots(one.position)
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
        complete, parts = kept(one, self.group)
        oldest = step - self.config.max_staleness
        return complete, {key: part for key, part in parts.items() if part[1]["policy_version"][0].as_py() >= oldest or complete}

    def _try(self, one: Round, chunks: list[list[Draw]], parts: Parts, model: nn.Module, step: int) -> list[dict[str, Any]]:
        """The rows of one try, in order; those that `parts` lacks are drawn, and added to it."""
        names = [ChunkName(chunks[0][0].attempt, number) for number in range(len(chunks))]
        missing = [number for number, name in enumerate(names) if name not in parts]
        if missing:
            if self.group.is_main:
                one.issue(names[0].attempt, issued([draw for number in missing for draw in chunks[number]], self.prompts, step))
            slots = list(dict.fromkeys(draw.slot for chunk in chunks for draw in chunk))
            order = Order(one.position, names[0].attempt, slots, missing)
            for name, raw in self.drawer.draw(one, order, chunks, model, step):
                parts[chunk_of(name)] = name, arrow_table(raw)
            if any(name not in parts for name in names):
                raise StopRequested("asked to stop while rollouts were drawn")
        return [row for name in names for row in parts[name][1].to_pylist()]

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
