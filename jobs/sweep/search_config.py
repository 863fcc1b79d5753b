"""The sections of a sweep's configuration: budget, and what each scheduler and search may be told."""

from typing import Self

from pydantic import Field, model_validator

from cluster.config import Section


class BudgetConfig(Section):
    """When the sweep ends though trials are left; what runs is saved and stopped."""

    steps: int | None = Field(default=None, ge=1, description="steps of all trials together")
    minutes: float | None = Field(default=None, gt=0, description="time of the sweep, over all its attempts")
    failed_trials: int | None = Field(
        default=None, ge=0, description="failed trials after which the sweep gives up; unset: half of them, at least 3"
    )


class AshaConfig(Section):
    """Successive halving, asynchronous: of the trials that reach a rung, the best go on."""

    grace_steps: int | None = Field(default=None, ge=1, description="the first rung; unset: a tenth of the steps")
    reduction_factor: float = Field(default=3, gt=1, description="one trial in so many goes on, and each rung is so much higher")
    brackets: int = Field(default=1, ge=1, description="brackets, each of which begins a rung higher")
    max_steps: int | None = Field(default=None, ge=1, description="the highest rung; unset: the job's steps")


class MedianConfig(Section):
    """Stop a trial whose best is worse than the median of the others' means."""

    grace_steps: int | None = Field(default=None, ge=1, description="none is stopped before; unset: a tenth of the steps")
    min_trials: int = Field(default=3, ge=1, description="so many others must have come as far")


class PbtConfig(Section):
    """Population based training: the worst go on from the best ones' checkpoints, with other hyperparameters."""

    interval_steps: int | None = Field(default=None, ge=1, description="steps between two decisions; unset: a tenth of the steps")
    quantile: float = Field(default=0.25, gt=0, le=0.5, description="share that exploits, and share that is exploited")
    resample_probability: float = Field(default=0.25, ge=0, le=1, description="draw a value anew instead of perturbing it")
    factors: tuple[float, float] = Field(default=(1.2, 0.8), description="by which a value is perturbed, up or down")
    synchronous: bool = Field(default=False, description="wait for all trials at each decision: reproducible, and slower")

    @model_validator(mode="after")
    def _factors(self) -> Self:
        if min(self.factors) <= 0:
            raise ValueError("factors must be above 0")
        return self


class OptunaConfig(Section):
    """The tree-structured Parzen estimator."""

    startup_trials: int = Field(default=10, ge=0, description="trials at random before the model is believed")
