"""GRPO as a recipe of the loop: prompts, rollouts made before each step, their loss, and the reference."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AutoTokenizer, GenerationConfig

from cluster.errors import ConfigError
from cluster.run.context import JobContext
from datapipe.tokens.tokenizer import Encoder
from jobs.align.config import AlignConfig
from jobs.align.preferences.data import tokenizer_files
from jobs.align.preferences.reference import open_reference
from jobs.align.rollouts.ledger import rollouts_folder
from jobs.align.rollouts.maker import RolloutMaker
from jobs.align.rollouts.objective import GroupRelative
from jobs.align.rollouts.prompts import TOKENIZER, PromptPlan, Prompts, prepare, tokenizer_plan
from jobs.align.rollouts.rewards.pool import RewardPool
from jobs.align.rollouts.source import RolloutSource
from jobs.programs.environment import project_folder
from jobs.training.model import ModelPlan
from jobs.training.objective import Objective
from jobs.training.recipe import Recipe, train
from sharding.group import Group

log = logging.getLogger(__name__)

_SEQ_LEN = 1024


def run(context: JobContext, config: AlignConfig, group: Group) -> dict[str, object]:
    """Learn from rewards; the results say how many prompts there were, and which were left out."""
    # this loss is near 0 and of any sign, so that no multiple of its mean says that it is an anomaly; NaN still does
    config = config.model_copy(update={"anomaly": config.anomaly.model_copy(update={"spike_factor": None})})
    counted = _prompts(context, config, group)
    with grpo_recipe(context, config, group, counted) as recipe:
        results = train(context, config, group, recipe)
    return {**results, "prompts": counted["prompts"], "rejected": counted["rejected"]}


@contextmanager
def grpo_recipe(context: JobContext, config: AlignConfig, group: Group, counted: dict[str, Any]) -> Iterator[Recipe]:
    """The recipe, with the processes in which rewards are computed."""
    folder, grpo = rollouts_folder(context.run), config.grpo
    tokenizer = tokenizer_plan(folder, counted)
    prompts = Prompts(folder, config.seed)
    plan = ModelPlan.of(config.model, context.run, tokenizer=tokenizer.record, seq_len=prompts.longest + grpo.max_new_tokens)
    plan = plan.with_lora(config.lora, config.seed)
    source = RolloutSource(tokens_per_sample=prompts.longest + grpo.max_new_tokens, num_rewards=len(grpo.rewards))
    modules = project_folder(context.run, grpo.directory)
    with RewardPool(grpo.rewards, grpo.reward_processes, modules) as pool:
        auto: Any = AutoTokenizer.from_pretrained(folder / TOKENIZER)
        maker = RolloutMaker(
            context=context,
            config=grpo,
            group=group,
            seed=config.seed,
            global_batch=config.batch.global_batch,
            steps=config.steps,
            ends=_ends(config, auto, tokenizer.record.end_of_document),
            parallel=config.parallel,
            prompts=prompts,
            tokenizer=auto,
            pool=pool,
            source=source,
        )
        yield Recipe(
            model=plan,
            tokenizer=tokenizer,
            source=source,
            validation=None,
            objective=_objective(context, config, plan),
            before_step=maker.before_step,
            reads_ahead=False,
            after_checkpoint=maker.settle,
        )


def _prompts(context: JobContext, config: AlignConfig, group: Group) -> dict[str, Any]:
    """Have the prompts encoded by rank 0 while the others wait. Raises DataError and ConfigError."""
    if not group.is_main:
        return group.broadcast_object(None)
    context.fence.check()
    files = tokenizer_files(context, config)
    limit = _seq_len(context, config, Encoder(files)) - config.grpo.max_new_tokens
    if limit < 1:
        raise ConfigError(
            f"grpo.max_new_tokens: {config.grpo.max_new_tokens} leaves no token for the prompt; lower it, or raise seq_len"
        )
    counted = prepare(_prompt_plan(config, limit), files, rollouts_folder(context.run))
    rejected = counted["rejected"]
    if rejected["total"]:
        log.warning("%d records of %s are left out: %s", rejected["total"], config.data, rejected["reasons"])
        context.run.event("prompts_rejected", total=rejected["total"], reasons=rejected["reasons"])
    return group.broadcast_object(counted)


def _prompt_plan(config: AlignConfig, limit: int) -> PromptPlan:
    return PromptPlan(config.data, limit, config.on_long, config.chat.verbatim, config.chat.system)


def _seq_len(context: JobContext, config: AlignConfig, encoder: Encoder) -> int:
    if config.seq_len is not None:
        return config.seq_len
    plan = ModelPlan.of(config.model, context.run, tokenizer=encoder.record(), seq_len=2)
    return min(getattr(plan.config, "max_position_embeddings", None) or _SEQ_LEN, _SEQ_LEN + config.grpo.max_new_tokens)


def _ends(config: AlignConfig, tokenizer: Any, end_of_document: int) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model's own directory names."""
    ends = {end_of_document, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    if config.model.path is not None:
        try:
            named = GenerationConfig.from_pretrained(config.model.path).eos_token_id
        except OSError:  # it has no such file
            named = None
        ends |= set(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(ends)


def _objective(context: JobContext, config: AlignConfig, plan: ModelPlan) -> Callable[[nn.Module, Group], Objective]:
    def build(model: nn.Module, group: Group) -> Objective:
        if not config.grpo.kl:
            return GroupRelative(config.grpo)
        return GroupRelative(config.grpo, open_reference(config.compared_with, context, config, group, plan))

    return build
