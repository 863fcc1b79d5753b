"""State of a training run: model and optimizer, progress, and the loss statistics that detect spikes."""

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ropewalk.jobs.training.loop.config import AnomalyConfig
from ropewalk.sharding.manifest import CheckpointManifest
from ropewalk.sharding.state import EMA, MODEL, State, model_state, optimizer_state, trained_state

_DECAY = 0.98
_WARMUP_STEPS = 20  # before the mean says anything
_DEVIATIONS = 6.0  # of the logarithm: near zero one batch is several times as hard as another, by chance
_LEAST = 0.01  # of the mean: a loss of 0 has no logarithm, and one near it must not be all that the noise consists of


@dataclass
class LossSpikeDetector:
    """The running mean of the loss, and the variance of its logarithm about its trend; plain values, so that a resumed run
    decides like the uninterrupted one."""

    mean: float = 0.0
    observations: int = 0
    last_log: float | None = None  # of the newest loss
    log_variance: float = 0.0  # half the mean square of its changes, which a falling loss hardly adds to

    def check(self, loss: float, gradient_norm: float, config: AnomalyConfig) -> str | None:
        """What is wrong with this step, as a clause for a message, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if not config.spike_factor or self.observations < _WARMUP_STEPS or self.mean <= 0:
            return None
        if loss > config.spike_factor * self.mean and self._beyond_noise(loss):
            return f"the loss is {loss:.4g}, {loss / self.mean:.1f} times its running mean"
        return None

    def _beyond_noise(self, loss: float) -> bool:
        return math.log(loss / self.mean) > _DEVIATIONS * math.sqrt(self.log_variance)

    def update(self, loss: float) -> None:
        """Count the loss of a step that was no anomaly."""
        self.observations += 1
        weight = max(1 - _DECAY, 1 / self.observations)
        self.mean += weight * (loss - self.mean)
        if self.mean > 0:
            log = math.log(max(loss, _LEAST * self.mean))
            change = log - self.last_log if self.last_log is not None else 0.0
            self.log_variance += weight * (change**2 / 2 - self.log_variance)
            self.last_log = log


@dataclass
class Progress:
    """All state that is not a tensor; kept in each checkpoint's manifest, so that a resumed run decides like the
    uninterrupted one."""

    step: int = 0  # batches that were learnt, or left out
    position: int = 0  # the next sample of the run
    loss: float | None = None
    watch: LossSpikeDetector = field(default_factory=LossSpikeDetector)
    validation: dict[str, float] = field(default_factory=dict)
    best_validation: float | None = None
    best_step: int | None = None  # of that validation, where its checkpoint is kept
    validations_without_gain: int = 0
    recent_loss: float = 0.0  # summed over the steps since the last validation
    recent_steps: int = 0
    finished: bool = False

    @classmethod
    def of(cls, manifest: CheckpointManifest) -> "Progress":
        """The progress that a checkpoint was saved with."""
        values = dict(manifest.progress)
        watch = LossSpikeDetector(**values.pop("watch", {}))
        return cls(**{**values, "step": manifest.step, "position": manifest.position, "watch": watch})

    def to_dict(self) -> dict[str, Any]:
        """All values but step and position, which have places of their own in a manifest."""
        return {key: value for key, value in asdict(self).items() if key not in {"step", "position"}}

    def leave_run(self) -> None:
        """Forget what only the run that it comes from has: its end, and the best of its validations."""
        self.finished, self.best_validation, self.best_step, self.validations_without_gain = False, None, None, 0

    def take_gap(self, loss: float) -> float | None:
        """How far a validation's loss is above that of the steps since the last one, which are counted anew from here; None
        where none was ever taken. It grows as the model begins to know its samples by heart.
        """
        if not self.recent_steps:
            return self.validation.get("validation/gap")
        gap = loss - self.recent_loss / self.recent_steps
        self.recent_loss, self.recent_steps = 0.0, 0
        return gap

    def improved(self, loss: float, *, kept: bool = False) -> bool:
        """Count a validation; returns whether its loss was the best so far. `kept`: its checkpoint is, if so."""
        better = self.best_validation is None or loss < self.best_validation
        self.best_validation = loss if better else self.best_validation
        self.best_step = (self.step if kept else None) if better else self.best_step
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
    def update(self, step: int) -> None:
        """Count the weights after `step` completed steps. The first steps are kept for less long, as the weights were random."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._means, self._weights, 1 - keep)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


@dataclass
class TrainState:
    """Model, optimizer and progress. Nothing else is trained, and nothing else is saved: no teacher, no reference."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained_only: bool = False  # the other parameters come from the model's first weights again, not from a checkpoint
    ema: MovingAverage | None = None
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def tensors(self) -> State:
        """The tensors of a checkpoint by name; no copies, so loading into them is loading."""
        parameters = trained_state(self.model, self.optimizer) if self.trained_only else model_state(self.model)
        means = self.ema.tensors if self.ema is not None else {}
        return parameters | optimizer_state(self.model, self.optimizer) | means
