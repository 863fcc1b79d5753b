"""The recipe of a training job, the assembly of the loop from it, and the origin of the first weights of an attempt."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from ropewalk.cluster.errors import ConfigError, DamagedCheckpointError, RopewalkError, StorageError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.node_ledger import machine_name
from ropewalk.cluster.run.node_memory import NodeMemory
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.training.loop.architecture.model_config import has_dropout
from ropewalk.jobs.training.loop.architecture.model_record import (
    TokenizerPlan,
    Weights,
    checkpoint_folder,
    find_source_run,
    write_record,
)
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.documents import require_separate
from ropewalk.jobs.training.loop.forecast.micro_batch import choose_micro_batch, lowered_when_exhausted
from ropewalk.jobs.training.loop.integrity.checks import Integrity
from ropewalk.jobs.training.loop.integrity.replay import Replay
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.objective import Objective
from ropewalk.jobs.training.loop.report.inspection import Inspection
from ropewalk.jobs.training.loop.report.layers import LayerWatch
from ropewalk.jobs.training.loop.report.report import Report
from ropewalk.jobs.training.loop.report.samples import PromptSamples
from ropewalk.jobs.training.loop.report.throughput import meter_of
from ropewalk.jobs.training.loop.source import Source
from ropewalk.jobs.training.loop.state_store import StateStore
from ropewalk.jobs.training.loop.trainer import Trainer
from ropewalk.jobs.training.loop.update.copy_interval import CopyInterval
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import MovingAverage, TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.jobs.training.loop.validation import Validation
from ropewalk.jobs.training.loop.validator import Validator
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.layout import directory_of, pin, unpin
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.determinism import use_deterministic_algorithms
from ropewalk.sharding.group import Group
from ropewalk.sharding.parallelize import compute_format

log = logging.getLogger(__name__)

MOMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training job: model, tokenizer, samples, objective, validation."""

    model: ModelPlan
    tokenizer: TokenizerPlan  # copied into the run: export and evaluate read it there
    source: Source
    validation: Validation | None
    objective: Callable[[nn.Module, Group], Objective]  # builds a frozen reference or teacher on the same mesh, if it needs one
    frozen: ModelPlan | None = None  # of that second model, without its adapter
    packs: str | None = None  # the key for which samples hold several documents, which the model must keep apart
    chat: bool = False  # the prompts of `samples` are messages to an assistant


def train(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> dict[str, object]:
    """Train to the end, from the newest complete checkpoint if there is one; returns the results. Raises StopRequested."""
    with lowered_when_exhausted(context, config):
        results = build_trainer(context, config, group, recipe).run()
    if group.is_main and recipe.model.adapter is None:
        unpin_weights(recipe.model.weights, context.run)
    return results


def build_trainer(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> Trainer:
    """Build a trainer that continues from the newest complete checkpoint, or begins at the recipe's first weights."""
    plan = recipe.model
    if config.precision.deterministic:
        use_deterministic_algorithms()
    if group.is_main:
        context.fence.check()
        pin_weights(plan.weights, context.run)
        record = plan.record(recipe.tokenizer.record, compute_format(config.precision, group.device))
        write_record(context.run, record, recipe.tokenizer)
    memory = _memory(context) if config.checkpoint.memory_every_steps is not None else None
    checkpoints = Checkpoints(context.run, group, context.fence, config.checkpoint, plan.fingerprint, memory=memory)
    start, trainer = _start(context, config, group, recipe, checkpoints)
    checkpoints.require_memory(trainer.state.tensors)
    checkpoints.clean()
    if (config.anomaly.policy == "rollback" or config.integrity is not None) and not start.resumes:
        trainer.store.save()  # so that a rollback always has a checkpoint to go back to
    return trainer


def _memory(context: JobContext) -> NodeMemory:
    """Return the memory of the node. Raises ConfigError if no agent started this rank."""
    if context.memory is None:
        raise ConfigError("checkpoint.memory_every_steps: needs an agent on each node; remove it, or start with `ropewalk run`")
    return context.memory


def _start(
    context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe, checkpoints: Checkpoints
) -> tuple["ModelStart", Trainer]:
    """Build a trainer and load the state that it starts from."""
    start = ModelStart.decide(context, config, recipe.model, checkpoints)
    trainer = _trainer(context, config, group, recipe, model=start.build(context, config, group), checkpoints=checkpoints)
    try:
        start.load(trainer)
        if recipe.packs is not None and not start.resumes:
            require_separate(trainer.state.model, group, recipe.packs)
        return start, trainer
    except DamagedCheckpointError:
        if not start.resumes:
            raise
    del trainer
    return _start(context, config, group, recipe, checkpoints)  # from the beginning: no checkpoint of the run is left


def _trainer(
    context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe, *, model: nn.Module, checkpoints: Checkpoints
) -> Trainer:
    objective, source = recipe.objective(model, group), recipe.source
    config = choose_micro_batch(context, config, group, recipe.model, source.filler(), frozen=recipe.frozen)
    optimizer = make_optimizer(model, config.optim, MOMENTS[config.precision.optimizer])
    ema = MovingAverage(model, optimizer, config.ema.decay) if config.ema is not None else None
    state = TrainState(model, optimizer, trained_only=recipe.model.adapter is not None, ema=ema)
    plan = recipe.model
    dropout = plan.draws or plan.noise is not None or has_dropout(plan.config)
    meter = meter_of(
        model, recipe.model.config, group, tokens_per_sample=source.tokens_per_sample, global_batch=config.batch.global_batch
    )
    hosts = group.gather_object(machine_name(), str)
    report = Report(context, group, meter, steps=config.steps, log_every=config.log_every, hosts=hosts)
    train_step = TrainStep(state, objective, source.filler(), config, group, dropout=dropout)
    integrity = None
    if config.integrity is not None and train_step.digests is not None:
        computes = config.precision.deterministic and group.world_size > 1 and group.tensor_mesh is None
        integrity = Integrity(
            every_steps=config.integrity.every_steps,
            excludes=config.precision.deterministic,
            group=group,
            digests=train_step.digests,
            checkpoints=checkpoints,
            report=report,
            context=context,
            hosts=hosts,
            replay=Replay(train_step) if computes else None,
        )
    return Trainer(
        context=context,
        config=config,
        state=state,
        train_step=train_step,
        source=source,
        validator=Validator(
            config=config.validation,
            validation=recipe.validation,
            samples=_samples(context, config, group, recipe),
            report=report,
        ),
        checkpoints=checkpoints,
        store=StateStore(
            context=context,
            config=config,
            state=state,
            train_step=train_step,
            checkpoints=checkpoints,
            report=report,
            integrity=integrity,
        ),
        interval=CopyInterval(config.checkpoint.memory_every_steps, config.checkpoint.every_steps, group, report.event),
        report=report,
        layers=LayerWatch(state, group, config.layers_every) if config.layers_every else None,
        inspection=Inspection(context, state, group.device),
        integrity=integrity,
    )


def _samples(context: JobContext, config: TrainingConfig, group: Group, recipe: Recipe) -> PromptSamples | None:
    if config.samples is None:
        return None
    sees = getattr(recipe.model.config, "max_position_embeddings", None) or recipe.model.seq_len
    return PromptSamples(config.samples, context.run, group, chat=recipe.chat, max_length=int(sees))


@dataclass(frozen=True, kw_only=True)
class ModelStart:
    """The state that an attempt starts from, the same on every rank."""

    plan: ModelPlan
    checkpoint: tuple[StoragePath, CheckpointManifest] | None  # to load; None: step 0 with the plan's own first weights
    source_run: RunDir | None = None  # the run that the checkpoint belongs to; None: this one
    any_step: bool = True  # an older checkpoint may be loaded if that one is damaged

    @classmethod
    def decide(cls, context: JobContext, config: TrainingConfig, plan: ModelPlan, checkpoints: Checkpoints) -> "ModelStart":
        """Choose the newest checkpoint of this run, else that of `start_from`, else none. Raises ConfigError, CheckpointError."""
        newest, start_from = checkpoints.find(), config.start_from
        if newest is not None or start_from is None:
            return cls(plan=plan, checkpoint=newest)
        source_run = find_source_run(context.run, start_from.run, "start_from.run")
        checkpoint = checkpoints.find_elsewhere(checkpoint_folder(source_run), start_from.step)
        return cls(plan=plan, checkpoint=checkpoint, source_run=source_run, any_step=start_from.step is None)

    @property
    def resumes(self) -> bool:
        """True if an earlier attempt of this run saved a checkpoint."""
        return self.checkpoint is not None and self.source_run is None

    def build(self, context: JobContext, config: TrainingConfig, group: Group) -> nn.Module:
        """Build the sharded model; weights that the checkpoint holds are left undefined."""
        weights = self.checkpoint is None or self.plan.adapter is not None
        return build_model(self.plan, context.run, group, config.parallel, config.precision, weights=weights)

    def load(self, trainer: Trainer) -> None:
        """Load the checkpoint, if there is one, and record where the run starts from."""
        if self.checkpoint is not None and self.source_run is None:
            trainer.store.resume(*self.checkpoint, certify=True)
            return
        trainer.report.start(0.0)  # steps of earlier groups, if there are any, are repeated
        if self.checkpoint is None:
            if self.plan.weights is not None:
                trainer.report.event("initialized_from", **self.plan.weights.model_dump(exclude_none=True))
            return
        assert self.source_run is not None
        step = trainer.store.load(*self.checkpoint, or_older=self.any_step).step
        trainer.checkpoints.last_step = None  # this run has saved nothing yet
        trainer.progress.leave_run()
        trainer.report.event("started_from", run=self.source_run.id, step=step, checkpoint=directory_of(step))


def pin_weights(weights: Weights | None, run: RunDir) -> None:
    """Protect the checkpoint whose weights `run` starts with from pruning, for as long as it may be read again."""
    if weights is not None and weights.run is not None and weights.step is not None and not run.model_record.is_file():
        try:
            pin(checkpoint_folder(find_source_run(run, weights.run, "model.run")), weights.step, run.id)
        except (OSError, StorageError) as error:  # another user's run may be read-only; a finished one prunes no more
            log.warning("model.run: %s may prune its checkpoint of step %d: %s", weights.run, weights.step, error)


def unpin_weights(weights: Weights | None, run: RunDir) -> None:
    """Release the checkpoint whose weights `run` started with: it will not be read again."""
    if weights is not None and weights.run is not None and weights.step is not None:
        with suppress(OSError, RopewalkError):  # the other run may have been deleted
            unpin(checkpoint_folder(find_source_run(run, weights.run, "model.run")), weights.step, run.id)
