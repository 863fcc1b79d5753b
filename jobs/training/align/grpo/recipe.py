"""GRPO as a recipe of the loop: prompts, rollouts generated before each step, their loss, and the reference."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import Phase
from ropewalk.datapipe.tokens.tokenizer import Encoder
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.grpo.chunks import ChunkGenerator
from ropewalk.jobs.training.align.grpo.generated_source import GrpoSource
from ropewalk.jobs.training.align.grpo.generators import RankGenerator, RolloutGenerator, WorkerGenerator
from ropewalk.jobs.training.align.grpo.objective import GroupRelative
from ropewalk.jobs.training.align.grpo.prompts import PromptPlan, Prompts, held_out_prompts, prepare, tokenizer_plan
from ropewalk.jobs.training.align.grpo.setup import answer_ends, open_pool, open_tokenizer, policy_plan
from ropewalk.jobs.training.align.grpo.validation import HeldOutRewards
from ropewalk.jobs.training.align.preferences.data import tokenizer_files
from ropewalk.jobs.training.align.preferences.reference import open_reference
from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.objective import Objective
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.rollouts.ledger import rollouts_folder, update_marks
from ropewalk.sharding.checkpoints.layout import complete_steps, directory_of
from ropewalk.sharding.checkpoints.manifest import read_manifest
from ropewalk.sharding.checkpoints.stored_tensors import newest_complete
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

_SEQ_LEN = 1024


def run(context: JobContext, config: AlignConfig, group: Group) -> dict[str, object]:
    """Train on rewards; the results count the prompts, and those that were rejected."""
    # this loss is near 0 with either sign, so that a multiple of its mean is no anomaly; NaN still is
    config = config.model_copy(update={"anomaly": config.anomaly.model_copy(update={"spike_factor": None})})
    counted = _prompts(context, config, group)
    with grpo_recipe(context, config, group, counted) as recipe:
        results = train(context, config, group, recipe)
    if group.is_main:  # a kill right after the last commit leaves its rounds unmarked
        _, newest = newest_complete(checkpoint_folder(context.run))
        update_marks(context.run, context.fence, newest.position, newest.step)
    prompt_counts: dict[str, object] = {name: counted[name] for name in ("prompts", "held_out", "rejected") if name in counted}
    return {**results, **prompt_counts}


@contextmanager
def grpo_recipe(context: JobContext, config: AlignConfig, group: Group, counted: dict[str, Any]) -> Iterator[Recipe]:
    """Build the recipe, and run the processes that compute rewards."""
    folder, grpo = rollouts_folder(context.run), config.grpo
    tokenizer = tokenizer_plan(folder, counted)
    prompts = Prompts(folder, config.seed)
    plan = policy_plan(context.run, config, counted, prompts)
    held_out = held_out_prompts(folder)

    def objective(model: nn.Module, group: Group) -> Objective:
        reference = open_reference(config.compared_with, context, config, group, plan) if grpo.kl else None
        return GroupRelative(grpo, reference)

    with _open_generator(context, config, group, (prompts, held_out), tokenizer.record.end_of_document) as generator:
        source = GrpoSource(
            context=context,
            config=grpo,
            group=group,
            global_batch=config.batch.global_batch,
            steps=config.steps,
            prompts=prompts,
            generator=generator,
            tokens_per_sample=plan.seq_len,
            oldest_position=partial(_oldest_position, context, config.checkpoint.keep),
        )
        validation = None
        if held_out is not None:
            validation = HeldOutRewards(context=context, config=grpo, group=group, prompts=held_out, generator=generator)
        yield Recipe(
            model=plan,
            tokenizer=tokenizer,
            source=source,
            validation=validation,
            objective=objective,
            frozen=plan if config.frozen_model() is not None else None,
            chat=True,
        )


def _oldest_position(context: JobContext, keep: int) -> int:
    """Return the position of the oldest checkpoint to which the run may roll back."""
    checkpoints = checkpoint_folder(context.run)
    steps = complete_steps(checkpoints)[-keep:]
    return read_manifest(checkpoints.child(directory_of(steps[0]))).position if steps else 0


@contextmanager
def _open_generator(
    context: JobContext, config: AlignConfig, group: Group, prompts: tuple[Prompts, Prompts | None], end: int
) -> Iterator[RolloutGenerator]:
    """Start the generator of rollouts: in the ranks, or in workers."""
    grpo = config.grpo
    if grpo.workers:
        with closing(WorkerGenerator(context, group, grpo.workers)) as generator:
            yield generator
        return
    tokenizer = open_tokenizer(rollouts_folder(context.run))
    with open_pool(context.run, grpo) as pool:
        generators = [
            None
            if some_prompts is None
            else ChunkGenerator(some_prompts, tokenizer, pool, lambda: context.heart.beat(Phase.ROLLOUT, 0))
            for some_prompts in prompts
        ]
        assert generators[0] is not None
        ends = answer_ends(config, tokenizer, end)
        yield RankGenerator(
            context, grpo, group, config.parallel, generators[0], seed=config.seed, ends=ends, held_out=generators[1]
        )


def _prompts(context: JobContext, config: AlignConfig, group: Group) -> dict[str, Any]:
    """Encode the prompts on rank 0 while the others wait. Raises DataError and ConfigError."""
    if not group.is_main:
        return group.broadcast_object(None)
    context.fence.check()
    files = tokenizer_files(context, config)
    limit = _seq_len(context, config, Encoder(files)) - config.grpo.max_new_tokens
    if limit < 1:
        raise ConfigError(
            f"grpo.max_new_tokens: {config.grpo.max_new_tokens} leaves no token for the prompt; lower it, or raise seq_len"
        )
    plan = PromptPlan(
        data=config.data,
        max_tokens=limit,
        on_long=config.on_long,
        verbatim=config.chat.verbatim,
        system=config.chat.system,
        validation_data=config.validation_data,
        validation_fraction=config.validation_fraction,
    )
    counted = prepare(plan, files, rollouts_folder(context.run))
    rejected = counted["rejected"]
    if rejected["total"]:
        log.warning("%d records of %s are rejected: %s", rejected["total"], config.data, rejected["reasons"])
        context.run.event("prompts_rejected", total=rejected["total"], reasons=rejected["reasons"])
    return group.broadcast_object(counted)


def _seq_len(context: JobContext, config: AlignConfig, encoder: Encoder) -> int:
    if config.seq_len is not None:
        return config.seq_len
    plan = ModelPlan.of(config.model, context.run, tokenizer=encoder.record(), seq_len=2)
    return min(getattr(plan.config, "max_position_embeddings", None) or _SEQ_LEN, _SEQ_LEN + config.grpo.max_new_tokens)
