"""Preferences as a recipe of the loop: prepared data, the model and what it is compared with."""

from collections.abc import Callable
from typing import Any

from torch import nn

from cluster.run.context import JobContext
from jobs.align.config import AlignConfig
from jobs.align.preferences.data import data_folder, prepared, tokenizer_plan, tokens_per_sample
from jobs.align.preferences.losses import pair_loss
from jobs.align.preferences.objective import PairObjective
from jobs.align.preferences.prepare import counts_of
from jobs.align.preferences.reference import Reference, frozen_copy
from jobs.align.preferences.source import PairSource, Rows
from jobs.training.model import ModelPlan
from jobs.training.objective import Objective
from jobs.training.recipe import Recipe, train
from sharding.group import Group


def run(context: JobContext, config: AlignConfig, group: Group) -> dict[str, object]:
    """Learn from preferences; the results say how many records were left out, and why."""
    manifest = prepared(context, config, group, paired=True)
    results = train(context, config, group, pair_recipe(context, config, manifest))
    return {**results, "pairs": counts_of(manifest)}


def pair_recipe(context: JobContext, config: AlignConfig, manifest: dict[str, Any]) -> Recipe:
    """Pairs of answers, their loss, and the reference."""
    tokenizer = tokenizer_plan(context, manifest)
    plan = ModelPlan.of(config.model, context.run, tokenizer=tokenizer.record, seq_len=manifest["plan"]["seq_len"])
    folder, mean_tokens = data_folder(context), tokens_per_sample(manifest)
    held_out = Rows(folder / "validation.arrow")
    return Recipe(
        model=plan,
        tokenizer=tokenizer,
        source=PairSource(Rows(folder / "train.arrow"), seed=config.seed, tokens_per_sample=mean_tokens),
        validation=PairSource(held_out, seed=0, tokens_per_sample=mean_tokens, in_order=True) if len(held_out) else None,
        objective=_objective(context, config, plan),
    )


def _objective(context: JobContext, config: AlignConfig, plan: ModelPlan) -> Callable[[nn.Module, Group], Objective]:
    def build(model: nn.Module, group: Group) -> Objective:
        reference: Reference | None = None
        if config.compared_with == "copy":
            reference = frozen_copy(context, config, group, plan)
        return PairObjective(pair_loss(config), reference)

    return build
