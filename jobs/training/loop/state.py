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
_WARMUP_STEPS = 20  # before the mean is meaningful
_DEVIATIONS = 6.0  # of the logarithm: near zero one batch may be several times as hard as another by chance
_LEAST = 0.01  # times the mean: smaller losses are raised to this, since losses near 0 would dominate the noise


@dataclass
class LossSpikeDetector:
    """Running mean of the loss, and variance of its logarithm about its trend; plain values, restored from checkpoints."""

    mean: float = 0.0
    observations: int = 0
    last_log: float | None = None  # of the last loss
    log_variance: float = 0.0  # half the mean square of its changes, to which a falling loss hardly contributes

    def check(self, loss: float, gradient_norm: float, config: AnomalyConfig) -> str | None:
        """Return the problem with this step's loss, as a clause for a message, or None."""
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
    """All state that is not a tensor; stored in each checkpoint's manifest, so that a resumed run makes the same decisions."""

    step: int = 0  # batches that were trained on or skipped
    position: int = 0  # number of the next sample of the run
    loss: float | None = None
    watch: LossSpikeDetector = field(default_factory=LossSpikeDetector)
    validation: dict[str, float] = field(default_factory=dict)
    best_validation: float | None = None
    best_step: int | None = None  # of that validation, if its checkpoint is kept
    validations_without_gain: int = 0
    recent_loss: float = 0.0  # summed over the steps since the last validation
    recent_steps: int = 0
    finished: bool = False

    @classmethod
    def of(cls, manifest: CheckpointManifest) -> "Progress":
        values = dict(manifest.progress)
        watch = LossSpikeDetector(**values.pop("watch", {}))
        return cls(**{**values, "step": manifest.step, "position": manifest.position, "watch": watch})

    def to_dict(self) -> dict[str, Any]:
        """Return all values but step and position, which are separate fields of a manifest."""
        return {key: value for key, value in asdict(self).items() if key not in {"step", "position"}}

    def leave_run(self) -> None:
        """Reset the values that belong to the run of the checkpoint: its end, and its best validation."""
        self.finished, self.best_validation, self.best_step, self.validations_without_gain = False, None, None, 0

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
    def update(self, step: int) -> None:
        """Add the weights after `step` completed steps. The first steps are forgotten faster, since the weights were random."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._means, self._weights, 1 - keep)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


@dataclass
class TrainState:
    """Model, optimizer and progress: all that is trained and checkpointed. A teacher or reference is not part of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trained_only: bool = False  # frozen parameters are not checkpointed: they come from the model's first weights
    ema: MovingAverage | None = None
    progress: Progress = field(default_factory=Progress)

    @cached_property
    def tensors(self) -> State:
        """The tensors of a checkpoint by name; no copies, so loading into them is loading."""
        parameters = trained_state(self.model, self.optimizer) if self.trained_only else model_state(self.model)
        means = self.ema.tensors if self.ema is not None else {}
        return parameters | optimizer_state(self.model, self.optimizer) | means
