"""Steps that were not applied because their loss is not finite or spikes: what is said about them, and when they end a run."""

import logging
import math

from ropewalk.cluster.errors import NumericsError
from ropewalk.jobs.training.loop.config import AnomalyConfig
from ropewalk.jobs.training.loop.report.report import Report
from ropewalk.jobs.training.loop.update.spikes import LossStatistics
from ropewalk.jobs.training.loop.update.step import StepStats

log = logging.getLogger(__name__)


class Anomalies:
    """The anomalies of one attempt."""

    def __init__(self, config: AnomalyConfig, report: Report) -> None:
        self._config, self._report = config, report
        self._number = 0

    def add(self, stats: StepStats, before: LossStatistics, global_batch: int) -> str:
        """Report a step that was not applied, and return its description. Raises NumericsError if it ends the run.

        `before`: the statistics of the loss before that step.
        """
        policy, position = self._config.policy, stats.position - global_batch
        problem = problem_of(stats, before)
        what = f"step {stats.step} (samples {position}..{stats.position - 1}): {problem}"
        self._number += 1
        self._report.event("anomaly", step=stats.step, position=position, problem=problem, policy=policy, loss=str(stats.loss))
        log.warning("%s; policy: %s", what, policy)
        if policy == "stop" or self._number > self._config.max_anomalies:
            raise NumericsError(
                f"{what}, anomaly {self._number} of this attempt; lower optim.lr, inspect the samples, "
                "or set anomaly.policy to skip or rollback"
            )
        return what


def problem_of(stats: StepStats, before: LossStatistics) -> str:
    """Describe, as a clause for a message, why a step was not applied."""
    if not stats.weight:
        return "no label counts for the loss (all are masked)"
    if not math.isfinite(stats.loss):
        return f"the loss is {stats.loss}"
    if not math.isfinite(stats.gradient_norm):
        return f"the gradient norm is {stats.gradient_norm}"
    return f"the loss is {stats.loss:.4g}, {stats.loss / before.mean:.1f} times its running mean"
