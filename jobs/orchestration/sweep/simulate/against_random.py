"""Hold a sweep's search against random draws: simulated sweeps with paired seeds, the same scheduler and the same cost."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.simulate.curve_table import CurveTable
from ropewalk.jobs.orchestration.sweep.simulate.simulator import SimulatedSweep, simulate
from ropewalk.jobs.results.compare import Comparison, judge
from ropewalk.jobs.results.statistics import mean_error

BUDGETS = (8, 16, 32, 64)  # in complete trials of mean cost
BEST_SHARE = 0.01  # the cost is measured until a configuration among the table's best 1% is the best trial


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The simulated sweeps of one search, one for each seed."""

    search: str
    regrets: Sequence[Sequence[float]]  # by seed and budget
    costs: Sequence[float]  # by seed: complete trials until the table's best 1%; infinite if not reached

    @property
    def means(self) -> list[float]:
        """The mean regret over the budgets, by seed."""
        return [statistics.fmean(values) for values in self.regrets]

    def plain(self) -> dict[str, Any]:
        by_budget = {str(budget): values for budget, values in zip(BUDGETS, zip(*self.regrets, strict=True), strict=True)}
        cost = statistics.median(self.costs)
        return {
            "search": self.search,
            "regret": statistics.fmean(self.means),
            "standard_error": mean_error(self.means),
            "by_budget": {budget: statistics.fmean(values) for budget, values in by_budget.items()},
            "errors_by_budget": {budget: mean_error(values) for budget, values in by_budget.items()},
            "trials_to_best_1_percent": cost if math.isfinite(cost) else None,
            "n": len(self.costs),
        }


def measure(
    config: SweepConfig, table: CurveTable, seeds: Sequence[int], report: Callable[[str], None], most: float = BUDGETS[-1]
) -> SearchResult:
    """Simulate the sweep with each seed until it has cost as much as `most` complete trials."""
    full = table.mean_flops
    values = sorted(map(table.true_value, table.curves), reverse=config.mode == "max")
    target = values[max(0, math.ceil(BEST_SHARE * len(values)) - 1)]
    sweeps: list[SimulatedSweep] = []
    for seed in seeds:
        sweeps.append(simulate(config, table, seed=seed, budget=most * full))
        report(f"search={config.search_name}: {len(sweeps)} of {len(seeds)} sweeps")
    return SearchResult(
        search=config.search_name,
        regrets=[[sweep.regret(budget * full) for budget in BUDGETS] for sweep in sweeps],
        costs=[sweep.cost_to_reach(target) / full for sweep in sweeps],
    )


def compare(result: SearchResult, random: SearchResult) -> Comparison:
    """Compare two searches with the same seeds; a positive difference favours the first."""
    return judge([other - mine for mine, other in zip(result.means, random.means, strict=True)])


def against_random(
    config: SweepConfig, table: CurveTable, seeds: Sequence[int], report: Callable[[str], None] = lambda _line: None
) -> dict[str, Any]:
    """Return the regret of the sweep's search and of random draws, and their paired difference."""
    result = measure(config, table, seeds, report)
    random = measure(config.model_copy(update={"search": "random"}), table, seeds, report)
    comparison = compare(result, random)
    return {
        "data": table.data,
        "scheduler": config.scheduler,
        "points": len(table.curves),
        "searches": [result.plain(), random.plain()],
        "difference": comparison.difference,
        "interval": comparison.interval,
        "p_value": comparison.p_of("first"),
        "better": {"first": config.search_name, "second": "random", None: None}[comparison.better],
    }
