"""Validation of a run that learns from rewards: the mean reward of answers to held-out prompts."""

import math
from dataclasses import dataclass

import numpy as np

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.grpo.chunks import split_into_chunks
from ropewalk.jobs.training.align.grpo.generators import RolloutGenerator
from ropewalk.jobs.training.align.grpo.prompts import Prompts
from ropewalk.jobs.training.align.grpo.requests import ChunkRequest
from ropewalk.jobs.training.align.grpo.source import total_reward
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.loop.objective import Means, Objective
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.validation import Validation
from ropewalk.jobs.training.rollouts.ledger import Round, arrow_table, parse_chunk_name
from ropewalk.sharding.group import Group


@dataclass(frozen=True, kw_only=True)
class HeldOutRewards(Validation):
    """Answers each held-out prompt once, with the same random numbers at every validation."""

    comparable = False  # rewards, not the loss of training
    context: JobContext
    config: GrpoConfig
    group: Group
    prompts: Prompts
    generator: RolloutGenerator

    def score(self, state: TrainState, objective: Objective, limit: int) -> Means:
        """Return means over the first prompts. The loss is the negative reward, so that lower is better."""
        step = state.progress.step
        ledger_round = Round(self.context.run, self.context.fence, step, held_out=True)
        slots = list(range(min(limit, len(self.prompts))))
        chunks = split_into_chunks(slots, 0, self.config, held_out=True)
        if self.group.is_main:
            ledger_round.remove()  # remains of an attempt that was killed here
            ledger_round.make()
        self.group.barrier()
        request = ChunkRequest(step, 0, slots, list(range(len(chunks))), held_out=True)
        files = sorted(
            self.generator.generate(ledger_round, request, chunks, state.model, step), key=lambda file: parse_chunk_name(file[0])
        )
        rows = [row for _, raw in files for row in arrow_table(raw).to_pylist()]
        zero = self.config.on_failed_reward == "zero"
        rewards = np.array([total_reward(row["rewards"], row["outcomes"], self.config.rewards, zero=zero) for row in rows])
        values = {
            "reward": rewards,
            "answer_tokens": np.array([float(len(row["tokens"])) for row in rows]),
            "truncated_fraction": np.array([float(row["truncated"]) for row in rows]),
        }
        for number, reward in enumerate(self.config.rewards if len(self.config.rewards) > 1 else ()):
            values_of_reward = [row["rewards"][number] for row in rows]
            values[f"reward/{reward.label}"] = np.array([math.nan if value is None else value for value in values_of_reward])
        means = {name: float(np.nanmean(each)) for name, each in values.items() if not np.isnan(each).all()}
        return Means(-means.get("reward", math.nan), float(len(rows)), means)
