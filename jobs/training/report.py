"""What a training run says of itself: metrics, events, progress. Rank 0 alone speaks."""

import logging
import time
from typing import Any

from cluster.context import JobContext
from cluster.files import write_json
from jobs.tracking import MetricLog
from jobs.training.meter import Meter
from jobs.training.progress import Progress
from jobs.training.step import Agreed
from sharding.group import Group

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5
_LOG_SECONDS = 10.0  # numbers go to the metrics; the log only shows that the rank is alive, and where it stands


class Report:
    """Writes into the run directory."""

    def __init__(self, context: JobContext, group: Group, meter: Meter, *, steps: int, log_every: int) -> None:
        self._context, self._first, self.meter = context, group.first, meter
        self._steps, self._log_every = steps, log_every
        self._metrics = MetricLog(context) if group.first else None
        self._reported = self._logged = 0.0
        self._rates: dict[str, float] = {}

    def event(self, kind: str, **fields: Any) -> None:
        """Something happened."""
        if self._first:
            log.info("%s %s", kind, " ".join(f"{key}={value}" for key, value in fields.items()))
            self._context.run.event(kind, attempt=self._context.attempt, group=self._context.group, **fields)

    def step(self, progress: Progress, agreed: Agreed, learning_rate: float) -> None:
        """A batch was learnt."""
        self.meter.count(int(agreed.weight))
        if self._metrics is None:
            return
        if progress.step % self._log_every == 0:
            speed = self.meter.read()
            self._rates = {"tokens/s": speed["train/tokens_per_second"]}
            values = {
                "train/loss": agreed.loss,
                "train/learning_rate": learning_rate,
                "train/gradient_norm": agreed.gradient_norm,
                "train/position": progress.position,
            }
            self._metrics.log(progress.step, {**values, **speed})
        if (now := time.monotonic()) - self._reported > _PROGRESS_SECONDS:
            self._reported = now
            self._progress(progress.step)
        if now - self._logged > _LOG_SECONDS:
            self._logged = now
            log.info(
                "step %d/%d, loss %.4f, %.0f tokens/s", progress.step, self._steps, agreed.loss, self._rates.get("tokens/s", 0)
            )

    def _progress(self, step: int) -> None:
        report = {"stage": "train", "done": step, "total": self._steps, "unit": "steps", "rates": self._rates}
        write_json(self._context.run.progress, report)

    def validation(self, progress: Progress) -> None:
        """The held-out split was scored."""
        if self._metrics is not None:
            log.info("step %d: %s", progress.step, ", ".join(f"{k} {v:.4f}" for k, v in progress.validation.items()))
            self._metrics.log(progress.step, progress.validation)

    def close(self, step: int) -> None:
        """The last word."""
        if self._first:
            self._progress(step)
