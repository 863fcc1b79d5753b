"""The keys of the `sweep` job, and checks for conflicting ones."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ropewalk.cluster.config import HANGS, RANKS, RUN_KEYS, WEIGHTS, JobConfig
from ropewalk.cluster.config_reader import read_job_file
from ropewalk.cluster.section import Section, default_text
from ropewalk.jobs.orchestration.sweep.search.plan import MODELS, SearchPlan
from ropewalk.jobs.orchestration.sweep.search.space import Space, condition_errors, grid_size, with_dotted_keys

DEFAULT_TRIALS = 10
SHARED = ("name", "resources", "wandb", "retries")  # keys of the base job that all trials share


class BudgetConfig(Section):
    """Limits at which the sweep ends early; running trials save a checkpoint and stop."""

    steps: int | None = Field(default=None, ge=1, description="total steps of all trials")
    minutes: float | None = Field(default=None, gt=0, description="run time of the sweep over all its attempts")
    failed_trials: int | None = Field(
        default=None, ge=0, description="number of failed trials that ends the sweep; unset: half of the trials, at least 3"
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
    """Population-based training (PBT): the worst trials continue from checkpoints of the best, with perturbed parameters."""

    interval_steps: int | None = Field(default=None, ge=1, description="steps between two decisions; unset: a tenth of the steps")
    quantile: float = Field(
        default=0.25, gt=0, le=0.5, description="fraction of trials to replace, and fraction that replaces them"
    )
    resample_probability: float = Field(
        default=0.25, ge=0, le=1, description="probability of a new value instead of a perturbed one"
    )
    factors: tuple[float, float] = Field(default=(1.2, 0.8), description="factors that perturb a value, up or down")
    synchronous: bool = Field(default=False, description="wait for all trials at each decision; reproducible but slower")

    @model_validator(mode="after")
    def _factors(self) -> Self:
        if min(self.factors) <= 0:
            raise ValueError("factors must be above 0")
        return self


class OptunaConfig(Section):
    """Optuna's tree-structured Parzen estimator (TPE)."""

    startup_trials: int = Field(default=10, ge=0, description="random trials before the model is used")


class EarlierTrial(Section):
    """A trial of an earlier sweep."""

    values: dict[str, Any] = Field(description="all keys of the space, in the search's encoding")
    metric: float = Field(description="the metric at the end")


class SweepKeys(JobConfig):
    """The keys of the `sweep` job. Its `resources` are those of the driver, or of the allocation that holds all trials."""

    usual_keys = (
        *("job", "base", "space", "metric", "mode", "trials", "max_concurrent", "scheduler", "search", "budget.minutes"),
        *("cluster", "allocation", "seed", *RUN_KEYS),
    )
    hidden_keys = HANGS | RANKS | WEIGHTS | {"earlier_trials"}

    job: str = Field(description="name of the job whose configuration is searched")
    base: dict[str, Any] = Field(
        default={}, description="configuration of the job, inline or a YAML file; trials share its resources"
    )
    space: Space = Field(
        min_length=1,
        description="dotted key: {uniform | loguniform | quniform | qloguniform | randint | choice | grid: ..., when: ...}",
    )
    metric: str = Field(description="the metric to optimize, as the job reports it, such as validation/loss")
    mode: Literal["min", "max"] = Field(default="min", description="min: lower is better; max: higher is better")
    trials: int | None = Field(
        default=None, ge=1, description="number of trials", json_schema_extra=default_text(f"{DEFAULT_TRIALS}, or the whole grid")
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="maximum number of concurrent trials; unset: as many as fit"
    )
    budget: BudgetConfig = Field(default=BudgetConfig(), description="limits that end the sweep early")
    scheduler: Literal["fifo", "asha", "median", "pbt"] = Field(default="fifo", description="algorithm that stops trials early")
    search: Literal["gp", "sobol", "random", "grid", "optuna"] | None = Field(
        default=None,
        description="algorithm that chooses parameters: gp (Gaussian process) and optuna (TPE) learn from results; sobol draws"
        " more evenly than random. Regret as a share of random's on 576 recorded curves of code and of prose, 100 seeds, with p"
        " after Holm's correction: with fifo, gp 0.72 (p < 0.001) and 0.51 (p < 0.001), optuna 0.88 (0.10) and 0.76 (p < 0.001),"
        " sobol 1.03 (0.64) and 0.93 (0.11); with asha, gp 0.81 (p = 0.009) and 0.77 (p < 0.001), optuna 0.80 (0.008) and 0.93"
        " (0.15), sobol 0.96 (0.27) and 0.86 (0.02)",
        json_schema_extra=default_text("gp; sobol if the space has a grid; random with scheduler=pbt"),
    )
    asha: AshaConfig = Field(default=AshaConfig(), description="settings of scheduler=asha")
    median: MedianConfig = Field(default=MedianConfig(), description="settings of scheduler=median")
    pbt: PbtConfig = Field(default=PbtConfig(), description="settings of scheduler=pbt")
    optuna: OptunaConfig = Field(default=OptunaConfig(), description="settings of search=optuna")
    warm_start: tuple[str, ...] = Field(
        default=(),
        description="earlier sweeps of the same job, base and metric, whose trials gp and optuna know from the start; with"
        " 16 of them, 8 trials of gp have 0.43 of the regret on recorded curves of code, 0.51 on prose (100 seeds)",
    )
    earlier_trials: tuple[EarlierTrial, ...] = Field(
        default=(), description="the trials of `warm_start`, filled in at submission"
    )
    cluster: str | None = Field(default=None, description="cluster for trials, as separate jobs; unset: the cluster of the sweep")
    allocation: bool = Field(
        default=False,
        description="run trials on the sweep's own nodes (its resources), placed by Ray, instead of as separate jobs",
    )

    @field_validator("base", mode="before")
    @classmethod
    def _read(cls, base: Any, others: ValidationInfo) -> Any:
        return read_job_file(Path(base).expanduser(), str(others.data.get("job"))) if isinstance(base, str) else base

    @field_validator("space", mode="before")
    @classmethod
    def _with_dotted_keys(cls, space: Any) -> Any:
        return with_dotted_keys(space)

    @field_validator("search", mode="before")
    @classmethod
    def _refuse_removed(cls, search: Any) -> Any:
        if search == "bohb":
            raise ValueError("bohb is not supported, as its packages are unmaintained; use search=gp, with scheduler=asha")
        return search

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if wrong := self._wrong_combination():
            raise ValueError(wrong)
        return self

    @property
    def search_name(self) -> str:
        """The search, also if the key is not set."""
        if self.search is not None:
            return self.search
        if self.scheduler == "pbt":
            return "random"
        return "sobol" if any(parameter.grid is not None for parameter in self.space.values()) else "gp"

    @property
    def num_trials(self) -> int:
        if self.search_name != "grid":
            return self.trials or DEFAULT_TRIALS
        return min(grid_size(self.space), self.trials or grid_size(self.space))

    @property
    def search_plan(self) -> SearchPlan:
        """The keys that determine the search."""
        startup, earlier = self.optuna.startup_trials, [(trial.values, trial.metric) for trial in self.earlier_trials]
        return SearchPlan(
            space=self.space,
            search=self.search_name,
            mode=self.mode,
            seed=self.seed,
            startup_trials=startup,
            earlier_trials=earlier,
        )

    def _wrong_combination(self) -> str:
        """Return a message about conflicting keys, or an empty string."""
        for key in self.space:
            if key.partition(".")[0] in SHARED:
                return f"space.{key}: all trials share this key; set it in base"
        if errors := condition_errors(self.space):
            return f"space.{errors[0]}"
        ranges = [key for key, parameter in self.space.items() if parameter.values is None]
        if self.search == "grid" and ranges:
            return f"search=grid needs finitely many values, but space.{ranges[0]} is a range; use a grid or a choice"
        if self.warm_start and self.search_name not in MODELS:
            return f"warm_start: search={self.search_name} does not learn from other trials; use search=gp"
        if self.scheduler == "pbt" and self.search_name != "random":
            return f"scheduler=pbt changes parameters itself and works with search=random only, not {self.search}"
        if self.scheduler == "pbt" and any(parameter.when for parameter in self.space.values()):
            return "scheduler=pbt perturbs every key at any time and does not support conditions (when)"
        if self.allocation and self.cluster is not None:
            return "allocation=true runs all trials on the sweep's own nodes; remove cluster or allocation"
        if not self.allocation and self.resources.nodes.most > 1:
            return "resources are those of the driver, which takes one node; set base.resources for trials (or allocation=true)"
        return ""
