"""A reward model as a recipe of the loop: the language model with a head that says one number."""

from dataclasses import replace
from typing import Any

from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.preferences.data import data_folder, prepared, tokenizer_plan, tokens_per_sample
from ropewalk.jobs.training.align.preferences.prepare import counts_of
from ropewalk.jobs.training.align.preferences.source import Rows
from ropewalk.jobs.training.align.reward.objective import RewardObjective
from ropewalk.jobs.training.align.reward.source import ScoredSource
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.validation import HeldOut
from ropewalk.sharding.group import Group

_HEAD = "score"  # as transformers calls it in every model for the classification of sequences


def run(context: JobContext, config: AlignConfig, group: Group) -> dict[str, object]:
    """Learn to score answers from pairs."""
    manifest = prepared(context, config, group, paired=True)
    results = train(context, config, group, reward_recipe(context, config, group, manifest))
    return {**results, "pairs": counts_of(manifest)}


def reward_recipe(context: JobContext, config: AlignConfig, group: Group, manifest: dict[str, Any]) -> Recipe:
    """Pairs, the model with its new head, and the Bradley-Terry loss."""
    tokenizer = tokenizer_plan(context, manifest)
    plan = ModelPlan.of(config.model, context.run, tokenizer=tokenizer.record, seq_len=manifest["plan"]["seq_len"])
    padding = plan.config.pad_token_id if plan.config.pad_token_id is not None else tokenizer.record.end_of_document
    plan.config.pad_token_id = padding  # by it the model finds the end of a sequence, here and wherever it is opened
    plan = _with_trained_head(replace(plan, head="reward").with_lora(config.lora, config.seed))
    folder, tokens = data_folder(context), tokens_per_sample(manifest)
    held_out = Rows(folder / "validation.arrow")
    source = ScoredSource(Rows(folder / "train.arrow"), padding=padding, seed=config.seed, tokens_per_sample=tokens)
    validation = ScoredSource(held_out, padding=padding, seed=0, tokens_per_sample=tokens, in_order=True)
    return Recipe(
        model=plan,
        tokenizer=tokenizer,
        source=source,
        validation=HeldOut(validation, group, micro_batch=config.batch.micro_batch) if len(held_out) else None,
        objective=lambda model, group: RewardObjective(config.load_loss()),
    )


def _with_trained_head(plan: ModelPlan) -> ModelPlan:
    """An adapter freezes all but itself; the head is new, and is learnt too."""
    adapter = plan.adapter
    if adapter is None:
        return plan

    def adapted(model: nn.Module) -> nn.Module:
        found = adapter(model)
        for name, parameter in found.named_parameters():
            if name.startswith(f"{_HEAD}."):
                parameter.requires_grad_(True)
        return found

    return replace(plan, adapter=adapted)
