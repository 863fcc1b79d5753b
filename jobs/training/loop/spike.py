"""Whether a step's loss is an anomaly: not a finite number, or far above its running mean and its recent noise."""

import math
from dataclasses import dataclass

from ropewalk.jobs.training.loop.config import AnomalyConfig

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
