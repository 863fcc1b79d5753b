"""Whether a step's loss is an anomaly: not a finite number, or far above its running mean."""

import math
from dataclasses import dataclass

from jobs.training.config import AnomalyConfig

_DECAY = 0.98
_WARMUP_STEPS = 20  # before the mean says anything


@dataclass
class LossSpikeDetector:
    """The running mean of the loss; plain values, so that a resumed run decides like the uninterrupted one."""

    mean: float = 0.0
    observations: int = 0

    def check(self, loss: float, gradient_norm: float, config: AnomalyConfig) -> str | None:
        """What is wrong with this step, as a clause for a message, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if config.spike_factor and self.observations >= _WARMUP_STEPS and loss > config.spike_factor * self.mean:
            return f"the loss is {loss:.4g}, {loss / self.mean:.1f} times its running mean"
        return None

    def update(self, loss: float) -> None:
        """Count the loss of a step that was no anomaly."""
        self.observations += 1
        weight = max(1 - _DECAY, 1 / self.observations)
        self.mean += weight * (loss - self.mean)
