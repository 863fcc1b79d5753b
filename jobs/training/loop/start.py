"""Origin of a model's first weights in an attempt: a checkpoint of this run or of another, given weights, or the seed."""

import logging
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from ropewalk.cluster.errors import RopewalkError, StorageError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_record import Weights, checkpoint_folder, find_source_run
from ropewalk.jobs.training.loop.trainer import Trainer
from ropewalk.sharding.checkpoint import Checkpoints
from ropewalk.sharding.group import Group
from ropewalk.sharding.layout import directory_of, pin, unpin
from ropewalk.sharding.manifest import CheckpointManifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelStart:
    """The state that an attempt starts from, the same on every rank."""

    plan: ModelPlan
    checkpoint: tuple[StoragePath, CheckpointManifest] | None  # to load; None: step 0 with the plan's own first weights
    source_run: RunDir | None = None  # the run that the checkpoint belongs to; None: this one

    @classmethod
    def decide(cls, context: JobContext, config: TrainingConfig, plan: ModelPlan, checkpoints: Checkpoints) -> "ModelStart":
        """Choose the newest checkpoint of this run, else that of `start_from`, else none. Raises ConfigError, CheckpointError."""
        newest, start_from = checkpoints.find(), config.start_from
        if newest is not None or start_from is None:
            return cls(plan=plan, checkpoint=newest)
        source_run = find_source_run(context.run, start_from.run, "start_from.run")
        checkpoint = checkpoints.find_elsewhere(checkpoint_folder(source_run), start_from.step)
        return cls(plan=plan, checkpoint=checkpoint, source_run=source_run)

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
        if self.checkpoint is None:
            if self.plan.weights is not None:
                trainer.report.event("initialized_from", **self.plan.weights.model_dump(exclude_none=True))
            return
        if self.source_run is None:
            trainer.resume(*self.checkpoint)
            return
        trainer.load(*self.checkpoint)
        trainer.checkpoints.last_step = None  # this run has saved nothing yet
        trainer.progress.leave_run()
        step = self.checkpoint[1].step
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
