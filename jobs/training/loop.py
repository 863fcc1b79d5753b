"""The training loop: batch, loss, agree, step, log, validate, checkpoint, stop?"""

import logging
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import nn

from cluster.context import JobContext
from cluster.errors import NumericsError, StopRequested
from cluster.files import write_json
from datapipe.loader import TokenLoader
from datapipe.prefetch import prefetch
from jobs.training.anomaly import LossWatch
from jobs.training.config import TrainingConfig
from jobs.training.meter import Meter
from jobs.training.objectives import Objective
from jobs.training.optimizer import adamw, learning_rate, set_learning_rate
from jobs.training.validation import bits_per_byte, sequence_losses
from sharding.batch_plan import BatchPlan
from sharding.checkpoint import Checkpoints, directory_of
from sharding.fsdp import free_gathered, reshards, set_pass, units_of
from sharding.group import Group
from sharding.manifest import CheckpointManifest
from sharding.state import model_state, optimizer_state, prepare_adam

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5


class Log(Protocol):
    """Where metrics go; called on rank 0."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics."""
        ...


@dataclass
class Progress:
    """Where a run stands: all of its state that is not a tensor, as plain values."""

    step: int = 0
    position: int = 0  # the next sample of the run
    loss: float | None = None
    watch: LossWatch = field(default_factory=LossWatch)
    validation: dict[str, float] = field(default_factory=dict)
    best_validation: float | None = None
    validations_without_gain: int = 0
    finished: bool = False

    @classmethod
    def of(cls, manifest: CheckpointManifest) -> "Progress":
        """As a checkpoint says."""
        values = dict(manifest.progress)
        watch = LossWatch(**values.pop("watch", {}))
        return cls(**{**values, "step": manifest.step, "position": manifest.position, "watch": watch})


class Agreed(NamedTuple):
    """What all ranks know of a step after their one small all-reduce."""

    loss: float  # nats a token over the global batch
    gradient_norm: float
    weight: float  # tokens of the global batch
    stop: bool
    save_failed: bool


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a job composes for the loop."""

    context: JobContext
    config: TrainingConfig
    group: Group
    model: nn.Module
    objective: Objective
    loader: TokenLoader
    held_out: TokenLoader | None
    checkpoints: Checkpoints
    metrics: Log
    meter: Meter
    dropout: bool = False


class Loop:
    """Trains until the steps are done, validation no longer gains, or the run is asked to stop."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.config, self.group, self.model = parts, parts.config, parts.group, parts.model
        self.optimizer = adamw(self.model, self.config.optim)
        prepare_adam(self.model, self.optimizer)
        self.tensors = model_state(self.model) | optimizer_state(self.model, self.optimizer)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.units = units_of(self.model)
        self.reshard = reshards(self.model, self.config.fsdp, self.group.device)
        self.plan = BatchPlan(
            global_batch=self.config.batch.global_batch,
            micro_batch=self.config.batch.micro_batch,
            world_size=self.group.world_size,
            rank=self.group.rank,
        )
        self.progress = Progress()
        self.anomalies = 0
        self._reported = 0.0

    def run(self) -> dict[str, object]:
        """Train from where the progress stands to the end; returns the job's results. Raises StopRequested."""
        self.model.train()
        while not self._done:
            with closing(self._batches()) as batches:
                if self._train(batches):
                    break
        return self._finish()

    def _train(self, batches: Generator[npt.NDArray[np.int64], None, None]) -> bool:
        """Learn batch after batch; False if the run went back and needs other batches."""
        first = True
        self.parts.meter.restart()
        for sequences in batches:
            agreed = self._agree(*self._backward(torch.from_numpy(sequences)))
            if agreed.save_failed:
                self.parts.checkpoints.wait()
            wrong = self.progress.watch.judge(agreed.loss, agreed.gradient_norm, self.config.anomaly)
            if wrong and not self._answer(wrong, agreed):
                return False
            if not wrong:
                self._update(agreed)
            self.progress.step += 1
            self.progress.position += self.plan.global_batch
            if first:
                self._event("first_step", step=self.progress.step)
                first = False
            self._log(agreed, skipped=bool(wrong))
            self._pause_for_validation()
            if self.progress.step % self.config.checkpoint.every_steps == 0 and not self._done:
                self.save()
            if self._done:
                return True
            if agreed.stop:
                self._leave()
        return True

    @property
    def _done(self) -> bool:
        return self.progress.finished or self.progress.step >= self.config.steps

    # --- one step

    def _batches(self) -> Generator[npt.NDArray[np.int64], None, None]:
        steps = self.plan.steps(self.progress.position, self.config.steps - self.progress.step)
        return prefetch(self.parts.loader.read, steps)

    def _backward(self, sequences: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Sum the gradients of this rank's sequences; returns their summed loss and weight."""
        sequences = sequences.to(self.group.device, non_blocking=True)
        loss_sum, weight = torch.zeros((), dtype=torch.float64, device=self.group.device), 0.0
        passes = self.plan.micro_batches(len(sequences))
        for number, rows in enumerate(passes):
            if len(passes) > 1:
                set_pass(self.units, last=number == len(passes) - 1, reshard=self.reshard)
            if self.parts.dropout:
                self._seed(number)
            batch, counts = sequences[rows], 1.0
            if not len(batch):
                batch, counts = torch.zeros(1, self.parts.loader.seq_len + 1, dtype=torch.int64, device=self.group.device), 0.0
            loss = self.parts.objective.loss_sum(self.model, batch)
            torch.autograd.backward(loss if counts else loss * 0.0)
            if counts:
                loss_sum += loss.detach()
                weight += self.parts.objective.weight(batch)
        return loss_sum, weight

    def _seed(self, number: int) -> None:
        """Dropout is a function of what is computed, so that a resumed step draws the same."""
        words = f"{self.config.seed}:{self.progress.step}:{self.group.rank}:{number}"
        torch.manual_seed(xxhash.xxh3_64_intdigest(words.encode()) >> 1)

    def _agree(self, loss_sum: torch.Tensor, weight: float) -> Agreed:
        """The global loss and gradient norm, and whether any rank must stop or could not save: one all-reduce."""
        norm = torch.nn.utils.get_total_norm(self._gradients()).double()
        flags = [weight, float(self.parts.context.stop_requested()), float(self.parts.checkpoints.failed)]
        mine = torch.tensor(flags, dtype=torch.float64, device=self.group.device)
        total = self.group.sum(torch.cat((torch.stack((loss_sum, norm * norm)), mine)))
        loss, square, weight, stop, failed = total.tolist()
        return Agreed(loss / weight, square**0.5 / weight, weight, stop > 0, failed > 0)

    @torch.no_grad()
    def _gradients(self) -> list[torch.Tensor]:
        # gradients are DTensors; plain shards spare one dispatch each
        return [p.grad.to_local() for p in self.parameters if p.grad is not None]  # type: ignore[attr-defined]

    def _update(self, agreed: Agreed) -> None:
        clip = self.config.optim.grad_clip
        factor = min(1.0, clip / (agreed.gradient_norm + 1e-6)) if clip else 1.0
        torch._foreach_mul_(self._gradients(), factor / agreed.weight)
        set_learning_rate(self.optimizer, self._learning_rate())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.loss = agreed.loss
        self.progress.watch.take(agreed.loss)

    def _learning_rate(self) -> float:
        return learning_rate(self.config.optim, self.progress.step, self.config.steps)

    # --- when something is wrong

    def _answer(self, wrong: str, agreed: Agreed) -> bool:
        """Apply the policy for a loss that is out of order; True if the run goes on with the next batch."""
        policy, here = self.config.anomaly.policy, self.progress
        self.optimizer.zero_grad()
        self.anomalies += 1
        samples = f"samples {here.position}..{here.position + self.plan.global_batch - 1}"
        self._event("anomaly", step=here.step + 1, position=here.position, problem=wrong, policy=policy, loss=str(agreed.loss))
        log.warning("step %d (%s): %s; policy: %s", here.step + 1, samples, wrong, policy)
        if policy == "stop" or self.anomalies > self.config.anomaly.most:
            raise NumericsError(
                f"step {here.step + 1} ({samples}): {wrong}, anomaly {self.anomalies} of this attempt; lower optim.lr, "
                "look at the samples, or set anomaly.policy to skip or rollback"
            )
        if policy == "skip":
            return True
        beyond = here.position + self.plan.global_batch
        if not self.resume():
            raise NumericsError(f"step {here.step + 1} ({samples}): {wrong}, and there is no checkpoint to go back to")
        self.progress.position = max(beyond, self.progress.position)
        return False

    # --- state

    def resume(self) -> bool:
        """Load the newest checkpoint that verifies; False if there is none."""
        self.parts.checkpoints.wait()
        found = self.parts.checkpoints.find()
        if found is None:
            return False
        self.load(*found)
        return True

    def load(self, folder: Any, manifest: CheckpointManifest) -> None:
        """Take over a checkpoint's state."""
        self.parts.checkpoints.load(folder, manifest, self.tensors)
        free_gathered(self.model)
        self.progress = Progress.of(manifest)
        self._event("resumed", step=manifest.step, checkpoint=directory_of(manifest.step), world_size=self.group.world_size)

    def save(self) -> None:
        """Begin to save the state as it is now."""
        values = asdict(self.progress)
        step, position = values.pop("step"), values.pop("position")
        self.parts.checkpoints.save(self.tensors, step=step, position=position, progress=values)

    def _leave(self) -> None:
        """Save what is not saved yet, and stop."""
        if self.parts.checkpoints.last_step != self.progress.step:
            self.save()
        self.parts.checkpoints.wait()
        self._event("stopped", step=self.progress.step)
        raise StopRequested(f"saved step {self.progress.step}")

    def _finish(self) -> dict[str, object]:
        """Score, save and report; of a run that had finished before, report again."""
        if not self.progress.finished or self.parts.checkpoints.last_step != self.progress.step:
            self._validate()
            self.progress.finished = True
            self.save()
        self.parts.checkpoints.close()
        return {
            "step": self.progress.step,
            "train/loss": self.progress.loss,
            **self.progress.validation,
            "tokens": self.progress.position * self.parts.loader.seq_len,
            "checkpoint": directory_of(self.progress.step),
        }

    # --- validation

    def _pause_for_validation(self) -> None:
        if self.progress.step % self.config.validation.every_steps or self._done:
            return
        self._validate()
        patience, loss = self.config.validation.patience, self.progress.validation.get("validation/loss")
        if patience is not None and loss is not None:
            best = self.progress.best_validation
            gained = best is None or loss < best
            self.progress.best_validation = loss if gained else best
            self.progress.validations_without_gain = 0 if gained else self.progress.validations_without_gain + 1
            if self.progress.validations_without_gain >= patience:
                self._event("early_stop", step=self.progress.step, best=self.progress.best_validation)
                self.progress.finished = True
        self.parts.meter.restart()

    def _validate(self) -> None:
        held_out = self.parts.held_out
        if held_out is None:
            return
        losses = sequence_losses(
            self.model,
            held_out,
            self.group,
            num_sequences=min(held_out.sequences, self.config.validation.max_sequences),
            micro_batch=self.config.batch.micro_batch,
        )
        loss = losses.mean().item() / held_out.seq_len
        self.progress.validation = {
            "validation/loss": loss,
            "validation/bits_per_byte": bits_per_byte(loss, held_out.bytes_per_token),
        }
        if self.group.first:
            self.parts.metrics.log(self.progress.step, self.progress.validation)

    # --- reporting

    def _log(self, agreed: Agreed, *, skipped: bool) -> None:
        self.parts.meter.count(int(agreed.weight))
        if not self.group.first:
            return
        step = self.progress.step
        if step % self.config.log_every == 0 and not skipped:
            values = {
                "train/loss": agreed.loss,
                "train/learning_rate": self.optimizer.param_groups[0]["lr"],
                "train/gradient_norm": agreed.gradient_norm,
                "train/position": self.progress.position,
                **self.parts.meter.read(),
            }
            self.parts.metrics.log(step, values)
            self._rate = values["train/tokens_per_second"]
        if (now := time.monotonic()) - self._reported > _PROGRESS_SECONDS:
            self._reported = now
            rates = {"tokens/s": getattr(self, "_rate", 0.0)}
            report = {"stage": "train", "done": step, "total": self.config.steps, "unit": "steps", "rates": rates}
            write_json(self.parts.context.run.progress, report)

    def _event(self, kind: str, **fields: Any) -> None:
        if self.group.first:
            self.parts.context.run.event(kind, attempt=self.parts.context.attempt, group=self.parts.context.group, **fields)
