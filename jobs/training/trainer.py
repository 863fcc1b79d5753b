"""The training loop: batch, loss, agree, step, log, validate, checkpoint, stop?"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cluster.engines.heartbeat import Phase
from cluster.errors import NumericsError, StopRequested
from cluster.run.context import JobContext
from cluster.run.directory import RunDir
from cluster.storage import StoragePath
from datapipe.loader.loader import TokenLoader
from datapipe.loader.prefetch import prefetch
from jobs.training.config import TrainingConfig
from jobs.training.optimizer import learning_rate
from jobs.training.progress import Progress
from jobs.training.report import Report
from jobs.training.step import Agreed, Stepper
from jobs.training.validation import bits_per_byte, sequence_losses
from sharding.checkpoint import Checkpoints
from sharding.fsdp import free_gathered
from sharding.group import Group
from sharding.layout import directory_of
from sharding.manifest import CheckpointManifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a job composes for the loop."""

    context: JobContext
    config: TrainingConfig
    group: Group
    stepper: Stepper
    loader: TokenLoader
    held_out: TokenLoader | None
    checkpoints: Checkpoints
    report: Report


def reader_for(
    device: torch.device, read: Callable[[Sequence[int]], npt.NDArray[np.int64]]
) -> Callable[[Sequence[int]], torch.Tensor]:
    """`read` with its result as a tensor, pinned where it goes to a GPU: only then does the step not wait for the copy."""

    def read_pinned(positions: Sequence[int]) -> torch.Tensor:
        # the current device is each thread's own, and the reading ahead is done by another: it would pin by way of GPU 0
        torch.cuda.set_device(device)
        return torch.from_numpy(read(positions)).pin_memory()

    def read_plain(positions: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(read(positions))

    return read_pinned if device.type == "cuda" else read_plain


class Loop:
    """Trains until the steps are done, validation no longer gains, or the run is asked to stop."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.config = parts, parts.config
        self.stepper, self.checkpoints, self.report = parts.stepper, parts.checkpoints, parts.report
        self.checkpoints.before_commit = self.report.flush  # the metrics of a step that is not done again are never lost
        self.progress = Progress()
        self._anomalies = 0

    def _tell(self, phase: Phase) -> None:
        """The agent knows what this rank is about to do, and so how long that may take."""
        self.parts.context.heart.beat(phase, self.progress.step)

    def run(self) -> dict[str, object]:
        """Train from where the progress stands to the end; returns the job's results. Raises StopRequested."""
        try:
            self.stepper.model.train()
            while not self._done:
                with closing(self._batches()) as batches:
                    self._learn(batches)
            return self._finish()
        except BaseException:
            with suppress(Exception):  # what it raises is this error, or what follows from it
                self.report.flush()
            raise
        finally:
            self._tell(Phase.LEAVING)

    @property
    def _done(self) -> bool:
        return self.progress.finished or self.progress.step >= self.config.steps

    def _batches(self) -> Generator[torch.Tensor, None, None]:
        """This rank's sequences, step by step from where the progress stands."""
        steps = self.stepper.plan.steps(self.progress.position, self.config.steps - self.progress.step)
        return prefetch(reader_for(self.parts.group.device, self.parts.loader.read), steps)

    def _learn(self, batches: Generator[torch.Tensor, None, None]) -> None:
        """Learn batch after batch, until the end or until the run went back and needs other batches."""
        first = True
        self.report.meter.restart()
        self._tell(Phase.DATA)
        for sequences in batches:
            self._tell(Phase.STEP)
            loss_sum, weight = self.stepper.backward(sequences, self.progress.step)
            agreed = self.stepper.agree(
                loss_sum, weight, stop=self.parts.context.stop_requested(), save_failed=self.checkpoints.failed
            )
            if agreed.save_failed:
                self._tell(Phase.CHECKPOINT)
                self.checkpoints.wait()  # raises what went wrong
            if not self._step(agreed):
                return
            if first:
                self.report.event("first_step", step=self.progress.step)
                first = False
            if self._due(self.config.validation.every_steps):
                self._validate_midway()
            if self._due(self.config.checkpoint.every_steps):
                self._save()
            if self._done:
                return
            if agreed.stop:
                self._leave()
            self._tell(Phase.DATA)

    def _due(self, every_steps: int) -> bool:
        return self.progress.step % every_steps == 0 and not self._done

    def _step(self, agreed: Agreed) -> bool:
        """Learn from the gradients, or leave the batch out; False if the run went back to a checkpoint."""
        progress = self.progress
        wrong = progress.watch.judge(agreed.loss, agreed.gradient_norm, self.config.anomaly)
        if wrong and not self._answer(wrong, agreed):
            return False
        rate = learning_rate(self.config.optim, progress.step, self.config.steps)
        if not wrong:
            self.stepper.update(agreed, rate)
            progress.loss = agreed.loss
            progress.watch.take(agreed.loss)
        progress.step += 1
        progress.position += self.stepper.plan.global_batch
        if not wrong:
            self.report.step(progress, agreed, rate)
        return True

    # --- when something is wrong

    def _answer(self, wrong: str, agreed: Agreed) -> bool:
        """Apply the policy for a loss that is out of order; True if the run goes on with the next batch."""
        policy, step, position = self.config.anomaly.policy, self.progress.step + 1, self.progress.position
        beyond = position + self.stepper.plan.global_batch
        what = f"step {step} (samples {position}..{beyond - 1}): {wrong}"
        self.stepper.optimizer.zero_grad()
        self._anomalies += 1
        self._tell(Phase.REPORT)
        self.report.event("anomaly", step=step, position=position, problem=wrong, policy=policy, loss=str(agreed.loss))
        log.warning("%s; policy: %s", what, policy)
        if policy == "stop" or self._anomalies > self.config.anomaly.most:
            raise NumericsError(
                f"{what}, anomaly {self._anomalies} of this attempt; lower optim.lr, look at the samples, "
                "or set anomaly.policy to skip or rollback"
            )
        if policy == "skip":
            return True
        self._tell(Phase.LOADING)
        self.checkpoints.wait()
        found = self.checkpoints.find()
        if found is None:
            raise NumericsError(f"{what}, and there is no checkpoint to go back to; set anomaly.policy to skip")
        self.load(*found)
        self.progress.position = max(beyond, self.progress.position)
        return False

    # --- state

    def load(self, folder: StoragePath, manifest: CheckpointManifest) -> None:
        """Take over a checkpoint's state."""
        self.checkpoints.load(folder, manifest, self.stepper.tensors)
        free_gathered(self.stepper.model)
        self.progress = Progress.of(manifest)
        world_size = self.parts.group.world_size
        self.report.event("resumed", step=manifest.step, checkpoint=directory_of(manifest.step), world_size=world_size)

    def begin_with(self, folder: StoragePath, manifest: CheckpointManifest, donor: RunDir) -> None:
        """Take over the state of another run's checkpoint; the configuration stays this run's own."""
        self.checkpoints.load(folder, manifest, self.stepper.tensors)
        self.checkpoints.last_step = None  # of its own this run has saved nothing yet
        free_gathered(self.stepper.model)
        self.progress = Progress.of(manifest)
        self.progress.finished = False
        self.report.event("started_from", run=donor.id, step=manifest.step, checkpoint=directory_of(manifest.step))

    def save_initial(self) -> None:
        """Save before the first step, so that a rollback always has something to go back to."""
        self._save()

    def _save(self) -> None:
        progress = self.progress
        self._tell(Phase.CHECKPOINT)
        self.checkpoints.save(self.stepper.tensors, step=progress.step, position=progress.position, progress=progress.figures())

    def _leave(self) -> None:
        """Save what is not saved yet, and stop."""
        if self.checkpoints.last_step != self.progress.step:
            self._save()
        self._tell(Phase.CHECKPOINT)
        self.checkpoints.close()
        self.report.event("stopped", step=self.progress.step)
        self.report.close(self.progress.step)
        raise StopRequested(f"saved step {self.progress.step}")

    def _finish(self) -> dict[str, object]:
        """Score, save and report; of a run that had finished before, report again."""
        progress = self.progress
        if not progress.finished or self.checkpoints.last_step != progress.step:
            self._validate()
            progress.finished = True
            self._save()
        self._tell(Phase.CHECKPOINT)
        self.checkpoints.close()
        self.report.close(progress.step)
        return {
            "step": progress.step,
            "train/loss": progress.loss,
            **progress.validation,
            "tokens": progress.position * self.parts.loader.seq_len,
            "checkpoint": directory_of(progress.step),
        }

    # --- validation

    def _validate_midway(self) -> None:
        self._validate()
        patience, loss = self.config.validation.patience, self.progress.validation.get("validation/loss")
        if patience is None or loss is None or self.progress.gained(loss):
            return
        if self.progress.validations_without_gain >= patience:
            self.report.event("early_stop", step=self.progress.step, best=self.progress.best_validation)
            self.progress.finished = True

    def _validate(self) -> None:
        held_out = self.parts.held_out
        if held_out is None:
            return
        self._tell(Phase.VALIDATION)
        losses = sequence_losses(
            self.stepper.model,
            held_out,
            self.parts.group,
            num_sequences=min(held_out.sequences, self.config.validation.max_sequences),
            micro_batch=self.config.batch.micro_batch,
        )
        loss = losses.mean().item() / held_out.seq_len
        self.progress.validation = {
            "validation/loss": loss,
            "validation/bits_per_byte": bits_per_byte(loss, held_out.bytes_per_token),
        }
        self.report.validation(self.progress)
        self.report.meter.restart()
