"""Cost of runs in groups, for `ropewalk cost`."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.cost import Cost, cost_of, read_prices, total_of, why_unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

By = Literal["run", "sweep", "project", "month"]
_COLUMNS = {
    "core_hours": ">CORE-HOURS",
    "gpu_hours": ">GPU-HOURS",
    "gpu_idle_hours": ">IDLE",
    "gpu_kwh": ">GPU KWH",
    "cpu_kwh": ">CPU KWH",
    "co2_kg": ">CO2 KG",
}


def cost_page(runs: Sequence[RunDir], by: By) -> dict[str, Any]:
    """Return the content of `cost --json`: a row per group, the oldest first, and their sum."""
    prices = read_prices()
    groups: dict[str, list[Cost]] = {}
    unknown: dict[str, str] = {}
    for run in runs:
        cost = cost_of(run, prices)
        groups.setdefault(_group(run, by), []).append(cost)
        for amount in (name for name, value in vars(cost).items() if value is None and name not in unknown):
            unknown[amount] = f"{run.id}: {why_unknown(amount, run, cost, prices)}"
    rows = [{"name": name, "runs": len(costs), **total_of(costs).plain()} for name, costs in groups.items()]
    whole = total_of(cost for costs in groups.values() for cost in costs)
    used = {str(run.record.get("cluster")) for run in runs}
    currencies = {prices[name].currency for name in used if name in prices}
    currency = currencies.pop() if len(currencies) == 1 else ""
    if len(currencies) > 0:  # several: a sum has no meaning
        rows, whole = [{**row, "money": None} for row in rows], Cost(**{**vars(whole), "money": None})
        unknown["money"] = f"the clusters have several currencies: {', '.join(sorted(currencies))}"
    total = {"name": "total", "runs": len(runs), **whole.plain()}
    return {"by": by, "currency": currency, "rows": rows, "total": total, "unknown": unknown}


def _group(run: RunDir, by: By) -> str:
    match by:
        case "run":
            return run.id
        case "sweep":
            return run.parent.id if run.parent is not None else run.id
        case "project":
            tracking = (run.record.get("config") or {}).get("wandb") or {}
            return str(tracking.get("project") or "ropewalk")
        case "month":
            return time.strftime("%Y-%m", time.localtime(run.record.get("created") or 0))


def cost_table(page: Mapping[str, Any]) -> "RenderableType":
    """Render the output of `cost`."""
    from rich.console import Group
    from rich.text import Text

    from ropewalk.jobs.runs.show.tables import table

    columns = {**({"spare_node_hours": ">SPARE NODE-HOURS"} if page["total"]["spare_node_hours"] else {}), **_COLUMNS}
    rendered = table(page["by"].upper(), ">RUNS", *columns.values(), f">{page['currency'] or 'MONEY'}")
    for row in [*page["rows"], page["total"]]:
        amounts = (row[key] for key in (*columns, "money"))
        rendered.add_row(row["name"], str(row["runs"]), *("unknown" if each is None else f"{each:,.3g}" for each in amounts))
    reasons = (f"{name.replace('_', ' ')} unknown: {reason}" for name, reason in page["unknown"].items())
    return Group(rendered, *map(Text, reasons))
