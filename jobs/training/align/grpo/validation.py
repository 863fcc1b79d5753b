"""What the policy's answers to held-out prompts are worth: the validation of a run that learns from rewards."""

import math
from dataclasses import dataclass

import numpy as np

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.grpo.advantages import total
from ropewalk.jobs.training.align.grpo.chunks import cut
from ropewalk.jobs.training.align.grpo.drawing import Drawer
from ropewalk.jobs.training.align.grpo.orders import Order
from ropewalk.jobs.training.align.grpo.prompts import Prompts
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.loop.objective import Means, Objective
from ropewalk.jobs.training.loop.state import TrainState
from ropewalk.jobs.training.loop.validation import Validation
from ropewalk.jobs.training.rollouts.ledger import Round, arrow_table, chunk_of
from ropewalk.sharding.group import Group


@dataclass(frozen=True, kw_only=True)
class HeldOutRewards(Validation):
    """Has held-out prompts answered, each once, by numbers that are the same at every validation. All ranks call it together."""

    comparable = False  # rewards, not the loss of training
    context: JobContext
    config: GrpoConfig
    group: Group
    prompts: Prompts
    drawer: Drawer

    def score(self, state: TrainState, objective: Objective, limit: int) -> Means:
        """The means over the first prompts. The loss is what the rewards miss of 0: the less, the better."""
        step = state.progress.step
        one = Round(self.context.run, self.context.fence, step, held_out=True)
        slots = list(range(min(limit, len(self.prompts))))
        chunks = cut(slots, 0, self.config, held_out=True)
        if self.group.is_main:
            one.remove()  # what an attempt has drawn that was killed here
            one.make()
        self.group.barrier()
        order = Order(step, 0, slots, list(range(len(chunks))), held_out=True)
        files = sorted(self.drawer.draw(one, order, chunks, state.model, step), key=lambda file: chunk_of(file[0]))
        rows = [row for _, raw in files for row in arrow_table(raw).to_pylist()]
        zero = self.config.on_failed_reward == "zero"
        rewards = np.array([total(row["rewards"], row["outcomes"], self.config.rewards, zero=zero) for row in rows])
        values = {
            "reward": rewards,
            "answer_tokens": np.array([float(len(row["tokens"])) for row in rows]),
            "truncated_fraction": np.array([float(row["truncated"]) for row in rows]),
        }
        for number, reward in enumerate(self.config.rewards if len(self.config.rewards) > 1 else ()):
            found = [row["rewards"][number] for row in rows]
            values[f"reward/{reward.label}"] = np.array([math.nan if value is None else value for value in found])
        means = {name: float(np.nanmean(each)) for name, each in values.items() if not np.isnan(each).all()}
        return Means(-means.get("reward", math.nan), float(len(rows)), means)
