"""Content of the page, as plain values: every figure comes from the functions of `ps`, `show`, `why` and `cost`."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.metrics import OWN_KEYS, curves, latest_metrics
from ropewalk.jobs.results.readable import read_table, tables
from ropewalk.jobs.results.thinning import sparkline, thinned
from ropewalk.jobs.runs.show import show, status
from ropewalk.jobs.runs.show.cost import cost_page
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.events import format_event
from ropewalk.jobs.runs.show.listing import list_rows

SPARKLINE_POINTS, CURVE_POINTS = 24, 600
MAX_ROWS = 50  # of a table, the last ones
MAX_STACK_BYTES = 20_000


def list_answer() -> list[dict[str, Any]]:
    """Return the rows of `ps --all`, newest first, each with a sparkline of the loss."""
    rows = list_rows(status.all_runs(), include_finished=True)
    return [{**row, "sparkline": _sparkline(row)} for row in reversed(rows)]


def _sparkline(row: Mapping[str, Any]) -> list[float]:
    return sparkline(RunDir(row["directory"]), "train/loss", SPARKLINE_POINTS) if row["loss"] is not None else []


def run_answer(run: RunDir) -> dict[str, Any]:
    """Return all about a run but its curves."""
    values = show.plain(run)
    state = status.states([run])[run.id]
    return {
        **{key: value for key, value in values.items() if key != "events"},
        "why": diagnose(run, state).plain(),
        "cost": cost_page([run], "run"),
        "events": [text for event in values["events"] if (text := format_event(event))],
        "hangs": [_hang(run, event) for event in values["events"] if event["event"] == "ranks_hung"],
        "tables": [_table(path) for path in tables(run.path)],
        "curve_names": sorted(key for key, value in values["metrics"].items() if _is_number(value) and key not in OWN_KEYS),
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _hang(run: RunDir, event: Mapping[str, Any]) -> dict[str, str]:
    """Return a hang in words, with the stacks that were recorded."""
    files = sorted((run.path / str(event.get("stacks"))).glob("*.txt")) if event.get("stacks") else []
    text = "\n".join(path.read_text(errors="replace") for path in islice(files, 8))
    return {"text": str(format_event(event)), "stacks": text[:MAX_STACK_BYTES]}


def _table(path: Path) -> dict[str, Any]:
    table = read_table(path)
    if table is None:
        return {"name": path.stem, "columns": [], "rows": []}
    return {"name": table.name, "columns": table.columns, "rows": table.rows[-MAX_ROWS:][::-1]}


def curves_answer(runs: Sequence[RunDir], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the curves of the runs that have these metrics, thinned."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [curve for of_run in pool.map(lambda run: _curves(run, keys), runs) for curve in of_run]


def _curves(run: RunDir, keys: Sequence[str]) -> list[dict[str, Any]]:
    answers = []
    for key, (steps, values) in curves(run, keys).items():
        few_steps, few_values = thinned(steps, values, CURVE_POINTS)
        answers.append({"run": run.id, "key": key, "steps": few_steps, "values": few_values, "points": len(steps)})
    return answers


def comparison_answer(runs: Sequence[RunDir]) -> dict[str, Any]:
    """Return the metrics that any of the runs has, and the keys of their configurations whose values differ."""
    flat = [dict(_flat({"job": run.record.get("job"), **(run.record.get("config") or {})})) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [{"key": key, "values": [values.get(key) for values in flat]} for key in keys]
    names = {name for run in runs for name, value in latest_metrics(run).items() if _is_number(value)}
    return {
        "runs": [run.id for run in runs],
        "curve_names": sorted(names - OWN_KEYS),
        "differences": [row for row in rows if any(value != row["values"][0] for value in row["values"])],
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else [(f"{prefix}{name}", value)]
    return pairs
