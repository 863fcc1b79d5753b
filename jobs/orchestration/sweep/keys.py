"""The keys of the `sweep` job, and which of them exclude each other."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ropewalk.cluster.config import JobConfig, Section
from ropewalk.cluster.config_reader import read_yaml
from ropewalk.jobs.orchestration.sweep.space import Space, grid_size, wrong_conditions

DEFAULT_TRIALS = 10
SHARED = ("name", "resources", "wandb", "retries")  # of the base job's keys: those that all trials share


class BudgetConfig(Section):
    """Limits at which the sweep ends early; running trials save a checkpoint and stop."""

    steps: int | None = Field(default=None, ge=1, description="steps of all trials together")
    minutes: float | None = Field(default=None, gt=0, description="time of the sweep, over all its attempts")
    failed_trials: int | None = Field(
        default=None, ge=0, description="failed trials after which the sweep gives up; unset: half of them, at least 3"
    )


class AshaConfig(Section):
    """Asynchronous successive halving (ASHA): the best of the trials that reach a rung continue to the next one."""

    grace_steps: int | None = Field(default=None, ge=1, description="the first rung; unset: a tenth of the steps")
    reduction_factor: float = Field(default=3, gt=1, description="keep 1 in N trials at each rung; rungs grow by this factor")
    brackets: int = Field(default=1, ge=1, description="brackets; each starts one rung higher than the one before")
    max_steps: int | None = Field(default=None, ge=1, description="the highest rung; unset: the job's steps")


class MedianConfig(Section):
    """Stop a trial whose best value is worse than the median of the other trials' running means."""

    grace_steps: int | None = Field(default=None, ge=1, description="steps before the first stop; unset: a tenth of the steps")
    min_trials: int = Field(default=3, ge=1, description="other trials that must have reached the same step")


class PbtConfig(Section):
    """Population based training (PBT): the worst trials continue from checkpoints of the best, with perturbed parameters."""

    interval_steps: int | None = Field(default=None, ge=1, description="steps between two decisions; unset: a tenth of the steps")
    quantile: float = Field(default=0.25, gt=0, le=0.5, description="fraction of trials replaced, and that replaces them")
    resample_probability: float = Field(
        default=0.25, ge=0, le=1, description="probability of a new value instead of a perturbed one"
    )
    factors: tuple[float, float] = Field(default=(1.2, 0.8), description="factors that perturb a value, up or down")
    synchronous: bool = Field(default=False, description="wait for all trials at each decision: reproducible, and slower")

    @model_validator(mode="after")
    def _factors(self) -> Self:
        if min(self.factors) <= 0:
            raise ValueError("factors must be above 0")
        return self


class OptunaConfig(Section):
    """Optuna's tree-structured Parzen estimator (TPE)."""

    startup_trials: int = Field(default=10, ge=0, description="random trials before the model is used")


class SweepKeys(JobConfig):
    """The keys of the `sweep` job. Its `resources` are those of the driver, or of the allocation that holds all trials."""

    job: str = Field(description="the job whose configuration is searched")
    base: dict[str, Any] = Field(default={}, description="its configuration, inline or a YAML file; trials share its resources")
    space: Space = Field(
        min_length=1, description="dotted key: {uniform|loguniform|quniform|qloguniform|randint|choice|grid: ..., when: ...}"
    )
    metric: str = Field(description="the metric to optimize, as the job reports it, such as validation/loss")
    mode: Literal["min", "max"] = Field(default="min", description="whether lower or higher is better")
    trials: int | None = Field(default=None, ge=1, description="number of trials; unset: 10, or the whole grid")
    max_concurrent: int | None = Field(default=None, ge=1, description="trials at a time; unset: as many as fit")
    budget: BudgetConfig = Field(default=BudgetConfig(), description="when to end early")
    scheduler: Literal["fifo", "asha", "median", "pbt"] = Field(default="fifo", description="what stops trials early")
    search: Literal["random", "grid", "optuna"] = Field(default="random", description="what chooses parameters")
    asha: AshaConfig = Field(default=AshaConfig(), description="settings of scheduler=asha")
    median: MedianConfig = Field(default=MedianConfig(), description="settings of scheduler=median")
    pbt: PbtConfig = Field(default=PbtConfig(), description="settings of scheduler=pbt")
    optuna: OptunaConfig = Field(default=OptunaConfig(), description="settings of search=optuna")
    cluster: str | None = Field(default=None, description="where trials run, as jobs of their own; unset: where the sweep does")
    allocation: bool = Field(
        default=False, description="trials share the sweep's own nodes (its resources), placed by Ray, instead of being own jobs"
    )

    @field_validator("base", mode="before")
    @classmethod
    def _read(cls, base: Any) -> Any:
        return read_yaml(Path(base).expanduser()) if isinstance(base, str) else base

    @field_validator("search", mode="before")
    @classmethod
    def _removed(cls, search: Any) -> Any:
        if search == "bohb":
            raise ValueError("bohb was removed, since nobody maintains its packages; use search=optuna, with scheduler=asha")
        return search

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if wrong := self._wrong_combination():
            raise ValueError(wrong)
        return self

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        if self.search != "grid":
            return self.trials or DEFAULT_TRIALS
        return min(grid_size(self.space), self.trials or grid_size(self.space))

    def _wrong_combination(self) -> str:
        """Keys that exclude each other, in words; empty if there are none."""
        for key in self.space:
            if key.partition(".")[0] in SHARED:
                return f"space.{key}: all trials share this key; set it in base"
        if found := wrong_conditions(self.space):
            return f"space.{found[0]}"
        ranges = [key for key, parameter in self.space.items() if parameter.values is None]
        if self.search == "grid" and ranges:
            return f"search=grid needs finitely many values, and space.{ranges[0]} is a range; give it a grid or a choice"
        if self.scheduler == "pbt" and self.search != "random":
            return f"scheduler=pbt changes parameters itself and goes with search=random only, not {self.search}"
        if self.scheduler == "pbt" and any(parameter.when for parameter in self.space.values()):
            return "scheduler=pbt perturbs every key at any time; conditions (when) do not go with it"
        if self.allocation and self.cluster is not None:
            return "allocation=true runs all trials on the sweep's own nodes; leave cluster out, or allocation"
        if not self.allocation and self.resources.nodes.most > 1:
            return "resources are the driver's, which takes one node; trials have base.resources (or set allocation=true)"
        return ""
