"""The recipe of a training job, and the assembly of the loop from it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.layers import LayerWatch
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.model_config import has_dropout
from ropewalk.jobs.training.loop.model_record import TokenizerPlan, write_record
from ropewalk.jobs.training.loop.objective import Objective
from ropewalk.jobs.training.loop.optimizer import adamw
from ropewalk.jobs.training.loop.report import Report
from ropewalk.jobs.training.loop.samples import PromptSamples
from ropewalk.jobs.training.loop.source import Source
from ropewalk.jobs.training.loop.start import ModelStart, pin_weights, unpin_weights
from ropewalk.jobs.training.loop.state import MovingAverage, TrainState
from ropewalk.jobs.training.loop.step import TrainStep
from ropewalk.jobs.training.loop.throughput import meter_of
from ropewalk.jobs.training.loop.trainer import Trainer
from ropewalk.jobs.training.loop.validation import Validation
from ropewalk.sharding.checkpoint import Checkpoints
from ropewalk.sharding.group import Group


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training job: model, tokenizer, samples, objective, validation."""

    model: ModelPlan
    tokenizer: TokenizerPlan  # copied into the run: export and evaluate read it there
    source: Source
    validation: Validation | None
    objective: Callable[[nn.Module, Group], Objective]  # builds a frozen reference or teacher on the same mesh, if it needs one
    chat: bool = False  # the prompts of `samples` are messages to an assistant


def train(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results. Raises StopRequested."""
    results = build_trainer(context, config, group, recipe).run()
    if group.is_main and recipe.model.adapter is None:
        unpin_weights(recipe.model.weights, context.run)
    return results


def build_trainer(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> Trainer:
    """Build a trainer that continues from the newest complete checkpoint, or begins at the recipe's first weights."""
    plan = recipe.model
    if group.is_main:
        context.fence.check()
        pin_weights(plan.weights, context.run)
        write_record(context.run, plan.record(recipe.tokenizer.record), recipe.tokenizer)
    checkpoints = Checkpoints(context.run, group, context.fence, config.checkpoint, plan.fingerprint)
    start = ModelStart.decide(context, config, plan, checkpoints)
    trainer = _trainer(context, config, group, recipe, model=start.build(context, config, group), checkpoints=checkpoints)
    start.load(trainer)
    if config.anomaly.policy == "rollback" and not start.resumes:
        trainer.save()  # so that a rollback always has a checkpoint to go back to
    checkpoints.clean()
    return trainer


def _trainer(
    context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe, *, model: nn.Module, checkpoints: Checkpoints
) -> Trainer:
    objective, source = recipe.objective(model, group), recipe.source
    optimizer = adamw(model, config.optim)
    ema = MovingAverage(model, optimizer, config.ema.decay) if config.ema is not None else None
    state = TrainState(model, optimizer, trained_only=recipe.model.adapter is not None, ema=ema)
    plan = recipe.model
    dropout = plan.draws or plan.noise is not None or has_dropout(plan.config)
    meter = meter_of(
        model,
        recipe.model.config,
        group,
        tokens_per_sample=source.tokens_per_sample,
        global_batch=config.batch.global_batch,
    )
    return Trainer(
        context=context,
        config=config,
        state=state,
        train_step=TrainStep(state, objective, source.filler(), config, group, dropout=dropout),
        source=source,
        validation=recipe.validation,
        checkpoints=checkpoints,
        report=Report(context, group, meter, steps=config.steps, log_every=config.log_every),
        layers=LayerWatch(state, group) if config.layers_every else None,
        samples=_samples(context, config, group, recipe),
    )


def _samples(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> PromptSamples | None:
    if config.samples is None:
        return None
    sees = getattr(recipe.model.config, "max_position_embeddings", None) or recipe.model.seq_len
    return PromptSamples(config.samples, context.run, group, chat=recipe.chat, max_length=int(sees))
