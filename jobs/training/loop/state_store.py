"""Storage of the training state: checkpoints, copies in the memory of nodes, and the way back to either."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ropewalk.cluster.errors import CorruptionError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import Phase
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.integrity.certificate import Certificate, Losses, recorded_losses
from ropewalk.jobs.training.loop.integrity.checks import Integrity
from ropewalk.jobs.training.loop.report.report import Report
from ropewalk.jobs.training.loop.update.state import Progress, TrainState
from ropewalk.jobs.training.loop.update.step import StepStats, TrainStep
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.layout import directory_of
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.fsdp import reshard_all


@dataclass(kw_only=True)
class StateStore:
    """Saves the state of training, leaves it to the next group, and restores it. All ranks call every method together."""

    context: JobContext
    config: TrainingConfig
    state: TrainState
    train_step: TrainStep
    checkpoints: Checkpoints
    report: Report
    integrity: Integrity | None
    _certificate: Certificate = field(default=Certificate(), init=False)  # of the restored state

    @property
    def is_saved(self) -> bool:
        """True if the newest checkpoint is of the current step."""
        return self.checkpoints.last_step == self.state.progress.step

    def save(self) -> None:
        """Copy the state and start to save it in the background."""
        self._store(self.checkpoints.save)

    def copy_to_memory(self) -> None:
        """Copy the state to the memory of this node and of another one."""
        self._store(self.checkpoints.copy_to_memory)

    def _store(self, store: Callable[..., None]) -> None:
        progress = self.state.progress
        self.context.enter(Phase.CHECKPOINT, progress.step)
        progress.training_seconds = self.report.training_seconds
        store(self.state.tensors, step=progress.step, position=progress.position, progress=progress.to_dict())

    def hand_over(self) -> bool:
        """Leave the state to the next group by a copy in memory; returns False if it would not outlive the nodes that leave."""
        memory, context = self.checkpoints.memory, self.context
        if memory is None or context.line is None:
            return False
        leaving = memory.leaving_nodes(leaves=context.node_must_stop)
        if not memory.outlives(leaving, least_nodes=context.run.resources(context.attempt).nodes.least):
            return False
        if memory.last_step != self.state.progress.step:
            self.copy_to_memory()
        if not memory.wait():
            return False
        if memory.memory.address not in leaving:
            context.line.hand_over()
        return True

    def close(self) -> None:
        """Wait until all that was saved is in storage. Raises the error of a save that failed."""
        self.context.enter(Phase.CHECKPOINT, self.state.progress.step)
        self.checkpoints.close()

    # --- the way back

    def resume(self, folder: StoragePath, manifest: CheckpointManifest, *, certify: bool = False) -> None:
        """Continue from a checkpoint. `certify`: the steps after it, if they were done before, must repeat their losses."""
        manifest = self.load(folder, manifest)
        group = self.train_step.group
        if certify:
            losses = recorded_losses(self.context.run, self.config, manifest, group.world_size) if group.is_main else None
            losses = group.broadcast_object(losses, Losses)
            self._certificate = Certificate(losses, manifest.step, self.checkpoints.tier)
        where = {"tier": self.checkpoints.tier, "world_size": group.world_size}
        self.report.event("resumed", step=manifest.step, checkpoint=directory_of(manifest.step), **where)
        self.report.start(self.state.progress.training_seconds)

    def load(self, folder: StoragePath, manifest: CheckpointManifest, *, or_older: bool = True) -> CheckpointManifest:
        """Load weights, optimizer and progress of a checkpoint, or of an older one if it is damaged; returns which."""
        manifest = self.checkpoints.load(folder, manifest, self.state.tensors, or_older=or_older)
        reshard_all(self.state.model)
        self.state.progress = Progress.of(manifest)
        self.train_step.detector.load(self.state.progress.watch)
        if self.integrity is not None:
            self.integrity.restored(manifest.step)
        return manifest

    def go_back(self, step: int) -> None:
        """Go back to the newest state up to a step, and remove those of later ones. Raises CorruptionError if there is none."""
        self._await_saves()
        self.checkpoints.discard_after(step)
        checkpoint = self.checkpoints.find()
        if checkpoint is None:
            raise CorruptionError(f"the state is corrupted, and no checkpoint of step {step} or earlier is left")
        self.resume(*checkpoint)

    def roll_back(self) -> bool:
        """Go back to the newest checkpoint in storage; returns False if there is none."""
        self._await_saves()
        checkpoint = self.checkpoints.find(in_memory=False)  # copies in memory may be of a step that led to this
        if checkpoint is not None:
            self.resume(*checkpoint)
        return checkpoint is not None

    def _await_saves(self) -> None:
        self.context.enter(Phase.LOADING, self.state.progress.step)
        self.checkpoints.wait()

    def refuted(self, stats: StepStats) -> int | None:
        """Return the step of the restored state if a step that is done again has another loss than the recorded one.

        None if the state is from a checkpoint in storage: there is nothing better to go back to.
        """
        certificate = self._certificate
        if certificate.repeats(stats):
            return None
        self._certificate = Certificate()
        recorded = certificate.losses[stats.step][1]
        fields = {"tier": certificate.tier, "loss": stats.loss, "recorded": recorded}
        self.report.event("not_certified", step=stats.step, restored=certificate.step, **fields)
        return certificate.step if certificate.tier == "memory" else None
