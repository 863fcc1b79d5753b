"""State of a training run: model and optimizer, progress, and an average of the weights."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ropewalk.jobs.training.loop.update.optimizer import Optimizer
from ropewalk.jobs.training.loop.update.spikes import LossStatistics
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.checkpoints.state import EMA, MODEL, State, model_state, optimizer_state, trained_state


@dataclass
class Progress:
    """All state that is not a tensor; stored in each checkpoint's manifest, so that a resumed run makes the same decisions."""

    step: int = 0  # batches that were trained on or skipped
    position: int = 0  # number of the next sample of the run
    loss: float | None = None
    watch: LossStatistics = field(default_factory=LossStatistics)
    validation: dict[str, float] = field(default_factory=dict)
    best_validation: float | None = None
    best_step: int | None = None  # of that validation, if its checkpoint is kept
    validations_without_gain: int = 0
    recent_loss: float = 0.0  # summed over the steps since the last validation
    recent_steps: int = 0
    finished: bool = False
    training_seconds: float | None = None  # of the run so far, that count; None: unknown

    @classmethod
    def of(cls, manifest: CheckpointManifest) -> "Progress":
        values = dict(manifest.progress)
        watch = LossStatistics(**values.pop("watch", {}))
        return cls(**{**values, "step": manifest.step, "position": manifest.position, "watch": watch})

    def to_dict(self) -> dict[str, Any]:
        """Return all values but step and position, which are separate fields of a manifest."""
        return {key: value for key, value in asdict(self).items() if key not in {"step", "position"}}

    def count(self, loss: float, watch: LossStatistics) -> None:
        """Count the loss of a step that was applied, with the statistics after it."""
        self.loss, self.watch = loss, watch
        self.recent_loss, self.recent_steps = self.recent_loss + loss, self.recent_steps + 1

    def leave_run(self) -> None:
        """Reset the values that belong to the run of the checkpoint: its end, and its best validation."""
        self.finished, self.best_validation, self.best_step, self.validations_without_gain = False, None, None, 0
        self.training_seconds = None

    def take_gap(self, loss: float) -> float | None:
        """Return the validation loss minus the mean training loss since the last validation, and reset that mean.

        It grows as the model memorizes its samples. Without a step in between the last value is returned, None at first.
        """
        if not self.recent_steps:
            return self.validation.get("validation/gap")
        gap = loss - self.recent_loss / self.recent_steps
        self.recent_loss, self.recent_steps = 0.0, 0
        return gap

    def improved(self, loss: float, *, saved: bool = False) -> bool:
        """Count a validation; returns True if its loss is the best so far. `saved`: a checkpoint of it is saved if so."""
        better = self.best_validation is None or loss < self.best_validation
        self.best_validation = loss if better else self.best_validation
        self.best_step = (self.step if saved else None) if better else self.best_step
        self.validations_without_gain = 0 if better else self.validations_without_gain + 1
        return better


class MovingAverage:
    """The exponential moving average of the trained weights, sharded like them and saved with them; starts as a copy."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.decay = decay
        trained = trained_state(model, optimizer)
        self._weights = [_local(tensor) for tensor in trained.values()]
        self.tensors: State = {f"{EMA}{name.removeprefix(MODEL)}": tensor.detach().clone() for name, tensor in trained.items()}
        self._means = [_local(tensor) for tensor in self.tensors.values()]

    @torch.no_grad()
    def update(self, step: int, applied: torch.Tensor) -> None:
        """Add the weights after `step` steps, of which the last was `applied` or is left out here too.

        The first steps are forgotten faster, since the weights were random.
        """
        keep = min(self.decay, (1 + step) / (10 + step))
        share = applied.to(self._means[0].dtype) * (1 - keep)
        for mean, weight in zip(self._means, self._weights, strict=True):
            mean.lerp_(weight, share)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


@dataclass
class TrainState:
    """Model, optimizer and progress: all that is trained and checkpointed. A teacher or reference is not part of it."""

    model: nn.Module
    optimizer: Optimizer
    trained_only: bool = False  # frozen parameters are not checkpointed: they come from the model's first weights
    ema: MovingAverage | None = None
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def tensors(self) -> State:
        """The tensors of a checkpoint by name; no copies, so loading into them is loading."""
        parameters = trained_state(self.model, self.optimizer) if self.trained_only else model_state(self.model)
        means = self.ema.tensors if self.ema is not None else {}
        return parameters | optimizer_state(self.model, self.optimizer) | means
