"""What makes a training job that job, and how the loop is put together from it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.ema import MovingAverage
from ropewalk.jobs.training.loop.layers import LayerWatch
from ropewalk.jobs.training.loop.load_checkpoint import pin_weights, unpin_weights
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_config import has_dropout
from ropewalk.jobs.training.loop.model_record import TokenizerPlan, checkpoint_place, find_source_run, keep_record
from ropewalk.jobs.training.loop.objective import Means, Objective
from ropewalk.jobs.training.loop.optimizer import adamw
from ropewalk.jobs.training.loop.report import Report
from ropewalk.jobs.training.loop.samples import PromptSamples
from ropewalk.jobs.training.loop.source import Source
from ropewalk.jobs.training.loop.state import TrainState
from ropewalk.jobs.training.loop.step import TrainStep
from ropewalk.jobs.training.loop.throughput import meter_of
from ropewalk.jobs.training.loop.trainer import Trainer
from ropewalk.sharding.checkpoint import Checkpoints
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)


def _no_metrics(loss: float) -> dict[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training job: model, tokenizer, samples, and what is learnt from them."""

    model: ModelPlan
    tokenizer: TokenizerPlan  # copied into the run: export and evaluate read it there
    source: Source
    validation: Source | None
    objective: Callable[[nn.Module, Group], Objective]  # builds a frozen reference or teacher on the same mesh, if it needs one
    chat: bool = False  # the prompts of `samples` are messages to an assistant
    validation_metrics: Callable[[float], dict[str, float]] = _no_metrics  # of the mean validation loss
    after_checkpoint: Callable[[int, int], None] | None = (
        None  # (position, step) of one that is committed; on rank 0, in a thread
    )
    # before each batch is taken, such as to generate it. It raises StopRequested where all ranks have agreed to stop: the state
    # is saved first
    before_step: Callable[[TrainState], None] | None = None
    reads_ahead: bool = True  # False: the samples of a step are not there before `before_step`
    before_validation: Callable[[TrainState, int], None] | None = None  # gets the number of samples that are scored
    # in place of the objective on the validation source; gets the largest number of samples. Its loss is of another scale than
    # that of training
    validated: Callable[[TrainState, int], Means] | None = None
    same_loss: bool = True  # in validation as in training, so that their gap tells what is learnt by heart


def train(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results. Raises StopRequested."""
    results = build_trainer(context, config, group, recipe).run()
    if group.is_main and recipe.model.adapter is None:
        unpin_weights(recipe.model.weights, context.run)
    return results


def build_trainer(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> Trainer:
    """A trainer that stands where the newest complete checkpoint stands, or at the beginning."""
    plan = recipe.model
    if group.is_main:
        context.fence.check()
        pin_weights(plan.weights, context.run)
        keep_record(context.run, plan.record(recipe.tokenizer.record), recipe.tokenizer)
    checkpoints = Checkpoints(context.run, group, context.fence, config.checkpoint, plan.fingerprint)
    found = checkpoints.find()
    start = config.start_from if found is None else None
    source_run = find_source_run(context.run, start.run, "start_from.run") if start is not None else None
    weights = plan.adapter is not None or (found is None and source_run is None)
    model = build_model(plan, context.run, group, config.parallel, config.precision, weights=weights)
    trainer = _trainer(context, config, group, recipe, model=model, checkpoints=checkpoints)
    if found is not None:
        trainer.resume(*found)
    elif start is not None and source_run is not None:
        trainer.start_from(*checkpoints.find_elsewhere(checkpoint_place(source_run), start.step), source_run)
    elif plan.weights is not None:
        trainer.report.event("initialized_from", **plan.weights.model_dump(exclude_none=True))
    if found is None and config.anomaly.policy == "rollback":
        trainer.save()  # so that a rollback always has something to go back to
    checkpoints.clean()
    return trainer


def _trainer(
    context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe, *, model: nn.Module, checkpoints: Checkpoints
) -> Trainer:
    objective = recipe.objective(model, group)
    optimizer = adamw(model, config.optim)
    ema = MovingAverage(model, optimizer, config.ema.decay) if config.ema is not None else None
    state = TrainState(model, optimizer, trained_only=recipe.model.adapter is not None, ema=ema)
    dropout = recipe.model.draws or has_dropout(recipe.model.config)
    meter = meter_of(
        model,
        recipe.model.config,
        group,
        tokens_per_sample=recipe.source.tokens_per_sample,
        global_batch=config.batch.global_batch,
    )
    return Trainer(
        context=context,
        config=config,
        group=group,
        state=state,
        train_step=TrainStep(state, objective, recipe.source.filler(), config, group, dropout=dropout),
        source=recipe.source,
        validation=recipe.validation,
        validation_metrics=recipe.validation_metrics,
        before_step=recipe.before_step,
        reads_ahead=recipe.reads_ahead,
        after_checkpoint=recipe.after_checkpoint,
        before_validation=recipe.before_validation,
        validated=recipe.validated,
        same_loss=recipe.same_loss and recipe.validated is None,
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
