"""Answers of the commands about sweeps."""

from typing import Any, Literal

from pydantic import Field

from ropewalk.jobs.cli.answers.base import Answer, OpenAnswer
from ropewalk.jobs.cli.answers.models import Interval


class Trial(OpenAnswer):
    """A trial of a sweep."""

    trial: int
    run: str | None
    parameters: dict[str, Any]
    state: str
    metric: float | None
    best_metric: float | None
    steps: int


class Best(Trial):
    """The best trial of a sweep, and its job file."""

    expected: float | None = Field(
        description="its metric with new seeds: their mean, or an estimate that is as a rule too good; null: too few trials"
    )
    expected_error: float | None
    expected_seeds: int = Field(description="runs of `confirm` with new seeds; 0: an estimate from the trials")
    job: str
    config: dict[str, Any]
    file: str | None = Field(description="the job file that was written")


class Candidate(Answer):
    """A configuration of `confirm` at new seeds."""

    candidate: str
    trial: int | None
    parameters: dict[str, Any]
    in_sweep: float | None
    mean: float | None
    standard_error: float | None
    n: int
    values: dict[str, float] = Field(description="by seed")
    runs: dict[str, str] = Field(description="by seed")


class Confirmation(Answer):
    """The answer of `confirm`."""

    sweep: str
    metric: str
    mode: Literal["min", "max"]
    candidates: list[Candidate]
    difference: float | None
    standard_error: float | None
    interval: Interval | None
    n: int
    real: bool | None = Field(description="null: too few seeds")
    words: str


class SimulatedSearch(Answer):
    """The simulated sweeps of one search."""

    search: str
    regret: float = Field(description="mean over budgets and seeds, of true final values")
    standard_error: float | None
    by_budget: dict[str, float] = Field(description="by complete trials")
    errors_by_budget: dict[str, float | None] = Field(description="standard errors")
    trials_to_best_1_percent: float | None = Field(description="median; null: not reached")
    n: int


class Simulation(Answer):
    """The answer of `sweep simulate`: the sweep's search, then random draws."""

    data: str
    scheduler: str
    points: int
    searches: list[SimulatedSearch]
    difference: float | None = Field(description="of the mean regrets, paired by seed; positive: better than random")
    interval: Interval | None
    p_value: float | None
    better: str | None = Field(description="null: no significant difference")


class Asked(Answer):
    """The answer of `sweep ask`."""

    trial: int
    parameters: dict[str, Any]


class Told(Answer):
    """A result as `sweep tell` has recorded it."""

    trial: int
    step: int
    value: float | None
    state: Literal["running", "complete", "stopped", "failed"]
