"""Validations of the model in training: they score held-out samples, write sample texts, report, and stop early."""

from dataclasses import dataclass

from ropewalk.jobs.training.loop.objective import Objective
from ropewalk.jobs.training.loop.report.report import Report
from ropewalk.jobs.training.loop.report.samples import PromptSamples
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.validation import Validation
from ropewalk.jobs.training.loop.validation_keys import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Validates the model in training. `validation`: None if there are no held-out samples."""

    config: ValidationConfig
    validation: Validation | None
    samples: PromptSamples | None
    report: Report

    def validate(self, state: TrainState, objective: Objective) -> bool:
        """Validate and report; returns True if the loss is the best so far."""
        if self.samples is not None:
            self.report.samples(self.samples.rows(state.model, state.progress.step))
            self.report.meter.restart()
        if self.validation is None:
            return False
        progress = state.progress
        means = self.validation.score(state, objective, self.config.max_sequences)
        values = {"loss": means.loss, **means.metrics}
        gap = progress.take_gap(means.loss)
        if gap is not None and self.validation.comparable:
            values["gap"] = gap
        progress.validation = {f"validation/{name}": value for name, value in values.items()}
        self.report.validation(progress)
        self.report.meter.restart()
        return progress.improved(means.loss, saved=self.config.keep_best)

    def is_over(self, state: TrainState) -> bool:
        """Return True, and report it, if `patience` validations have brought no lower loss."""
        progress, patience = state.progress, self.config.patience
        if patience is None or progress.validations_without_gain < patience:
            return False
        self.report.event("early_stop", step=progress.step, best=progress.best_validation)
        return True
