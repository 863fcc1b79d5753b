"""Steps whose loss is not finite or spikes, found on the device, so that no update waits for the host."""

import math
from dataclasses import astuple, dataclass

import torch

from ropewalk.jobs.training.loop.config import AnomalyConfig

_DECAY = 0.98
_WARMUP_STEPS = 20  # before the mean is meaningful
_DEVIATIONS = 6.0  # of the logarithm: near zero one batch may be several times as hard as another by chance
_LEAST = 0.01  # times the mean: smaller losses are raised to this, since losses near 0 would dominate the noise


@dataclass(frozen=True)
class LossStatistics:
    """Running mean of the loss, and variance of its logarithm about its trend; plain values, restored from checkpoints."""

    mean: float = 0.0
    observations: int = 0
    last_log: float | None = None  # of the last loss
    log_variance: float = 0.0  # half the mean square of its changes, to which a falling loss hardly contributes

    @classmethod
    def of(cls, values: list[float]) -> "LossStatistics":
        """Return the statistics that are the values of a SpikeDetector."""
        mean, observations, last_log, log_variance = values
        return cls(mean, int(observations), None if math.isnan(last_log) else last_log, log_variance)


class SpikeDetector:
    """The statistics of the loss on a device, where they decide whether a step updates the model."""

    def __init__(self, config: AnomalyConfig, device: torch.device, statistics: LossStatistics | None = None) -> None:
        self._config, self._device = config, device
        self.load(statistics or LossStatistics())

    def load(self, statistics: LossStatistics) -> None:
        values = [math.nan if value is None else float(value) for value in astuple(statistics)]
        self.values = torch.tensor(values, dtype=torch.float64, device=self._device)

    def accept(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor:
        """Return whether a step's loss and gradient norm are normal, as a tensor; if they are, count the loss.

        They may be vectors, of independent runs.
        """
        mean, observations, last_log, variance = self.values.unbind()
        accepted = loss.isfinite() & gradient_norm.isfinite()
        if (factor := self._config.spike_factor) is not None:
            beyond_noise = (loss / mean).log() > _DEVIATIONS * variance.sqrt()
            usable = (observations >= _WARMUP_STEPS) & (mean > 0)
            accepted &= ~(usable & (loss > factor * mean) & beyond_noise)
        observations = observations + 1
        weight = (1 / observations).clamp(min=1 - _DECAY)
        mean = mean + weight * (loss - mean)
        log = loss.maximum(_LEAST * mean).log()
        change = (log - last_log).where(~last_log.isnan(), 0.0)
        noisier = variance + weight * (change.square() / 2 - variance)
        positive = mean > 0
        counted = torch.stack([mean, observations, log.where(positive, last_log), noisier.where(positive, variance)])
        self.values = counted.where(accepted, self.values)
        return accepted
