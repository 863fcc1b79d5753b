"""The keys of the `sweep` job."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.backends.profiles import load_profile
from cluster.config import JobConfig, PathView, read_yaml
from cluster.spec import Engine
from jobs.sweep.search_config import AshaConfig, BudgetConfig, MedianConfig, OptunaConfig, PbtConfig
from jobs.sweep.space import Space, grid_size

DEFAULT_TRIALS = 10


class SweepConfig(JobConfig):
    """The keys of the `sweep` job. Its `resources` are those of the driver, or of the allocation that holds all trials."""

    job: str = Field(description="the job whose configuration is searched")
    base: dict[str, Any] = Field(default={}, description="its configuration, inline or a YAML file; trials share its resources")
    space: Space = Field(
        min_length=1, description="dotted key: {uniform|loguniform|quniform|qloguniform|randint|choice|grid: ..., when: ...}"
    )
    metric: str = Field(description="what is compared, as the job reports it, such as validation/loss")
    mode: Literal["min", "max"] = Field(default="min", description="whether less or more is better")
    trials: int | None = Field(default=None, ge=1, description="how many; unset: 10, or the whole grid")
    max_concurrent: int | None = Field(default=None, ge=1, description="trials at a time; unset: as many as fit")
    budget: BudgetConfig = Field(default=BudgetConfig(), description="when to end early")
    scheduler: Literal["fifo", "asha", "median", "pbt"] = Field(default="fifo", description="who stops trials early")
    search: Literal["random", "grid", "optuna", "bohb"] = Field(
        default="random", description="who chooses parameters; bohb brings HyperBand as its scheduler, with asha's keys"
    )
    asha: AshaConfig = Field(default=AshaConfig(), description="of scheduler=asha and search=bohb")
    median: MedianConfig = Field(default=MedianConfig(), description="of scheduler=median")
    pbt: PbtConfig = Field(default=PbtConfig(), description="of scheduler=pbt")
    optuna: OptunaConfig = Field(default=OptunaConfig(), description="of search=optuna")
    cluster: str | None = Field(default=None, description="where trials run, as jobs of their own; unset: where the sweep does")
    allocation: bool = Field(
        default=False, description="trials share the sweep's own nodes (its resources), placed by Ray, instead of being own jobs"
    )

    @field_validator("base", mode="before")
    @classmethod
    def _read(cls, base: Any) -> Any:
        return read_yaml(Path(base).expanduser()) if isinstance(base, str) else base

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        from jobs.sweep.checks import checked_base, wrong_combination

        if wrong := wrong_combination(self):
            raise ValueError(wrong)
        # paths of the base are meant where the user stands
        object.__setattr__(self, "base", checked_base(self))
        object.__setattr__(self, "trials", self.num_trials)
        return self

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        if self.search != "grid":
            return self.trials or DEFAULT_TRIALS
        return min(grid_size(self.space), self.trials or grid_size(self.space))

    def preferred_engine(self) -> Engine | None:
        """Trials inside the sweep's own allocation need a Ray cluster over it."""
        return Engine.RAY if self.allocation else None

    def preflight(self, here: PathView = Path) -> None:
        """The packages, the trials' cluster, and what the job itself checks. Raises ConfigError, DataError."""
        from jobs.sweep.checks import preflight

        if self.cluster is not None:
            load_profile(self.cluster)
        preflight(self, here)

    def other_cluster(self) -> str | None:
        """That of the trials."""
        return self.cluster

    def facts(self, cluster_name: str) -> dict[str, Any]:
        """The trials' cluster as the profile file describes it now: the driver may stand where there is no such file."""
        from jobs.sweep.checks import refuse_unreachable

        own, trials = load_profile(cluster_name), load_profile("allocation" if self.allocation else self.cluster or cluster_name)
        refuse_unreachable(own, trials)
        known = {p.name: {"backend": p.backend, **p.options} for p in (own, trials)}
        return {"trials_on": {"cluster": trials.name, "backend": trials.backend}, "clusters": known}
