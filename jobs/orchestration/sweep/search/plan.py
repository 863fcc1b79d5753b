"""The keys of a sweep that determine its search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.jobs.orchestration.sweep.search.space import Space

MODELS = frozenset({"gp", "optuna"})  # searches that learn from results


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The keys of a sweep that determine its search."""

    space: Space
    search: str
    mode: str = "min"
    seed: int = 0
    startup_trials: int = 10
    earlier_trials: Sequence[tuple[Mapping[str, Any], float]] = ()  # encoded values and final metric of trials of earlier sweeps
