"""A picture of simulated sweeps: regret over cost, beside random draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.runs.show.plots import MUTED, VALIDATION, as_png, dress

SIZE = (7.0, 4.4)


def write_picture(result: Mapping[str, Any], path: Path) -> None:
    """Write the result of `against_random` as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_png(lambda axis: _draw(axis, result), SIZE))


def _draw(axis: Any, result: Mapping[str, Any]) -> None:
    """Draw a line for each search, with two standard errors on both sides."""
    for search, color in zip(result["searches"], (VALIDATION, MUTED), strict=True):
        budgets = [int(budget) for budget in search["by_budget"]]
        means = list(search["by_budget"].values())
        reach = [2 * error for error in search["errors_by_budget"].values()]
        style = {"color": color, "linewidth": 1.8, "capsize": 3, "marker": "o", "markersize": 4}
        axis.errorbar(budgets, means, reach, label=search["search"], **style)
    dress(axis, f"regret on {result['data']}, scheduler={result['scheduler']}, {result['searches'][0]['n']} seeds, ± 2 SE")
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [str(budget) for budget in budgets])
    axis.set_xlabel("cost, in complete trials")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)
