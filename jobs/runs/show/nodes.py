"""Machines of a cluster that failed under runs, for `ropewalk nodes`."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.run.directory import runs_root
from ropewalk.cluster.run.node_ledger import bad_nodes, counted_failures

if TYPE_CHECKING:
    from rich.console import RenderableType


def failed_nodes(cluster: str) -> list[dict[str, Any]]:
    """Return the machines that failed by themselves in the last days, those with most failures first."""
    backend = load_backend(cluster)
    root = Path(str(backend.cluster.options.get("runs") or runs_root())).expanduser()
    failures, now = backend.failures(root), time.time()
    until = {bad.node: bad.until for bad in bad_nodes(failures, now)}
    avoided = set(backend.avoided_nodes(root))
    rows = [
        {
            "node": node,
            "runs": len({each.run for each in of_node}),
            "failures": len(of_node),
            "causes": sorted({each.cause for each in of_node}),
            "last": max(each.time for each in of_node),
            "avoided": node in avoided,
            "until": until[node] if node in avoided else None,
        }
        for node, of_node in counted_failures(failures, now).items()
    ]
    return sorted(rows, key=lambda row: (not row["avoided"], -row["failures"], row["node"]))


def nodes_table(rows: Sequence[Mapping[str, Any]]) -> "RenderableType":
    """Render the output of `nodes`."""
    from ropewalk.jobs.runs.show.tables import table

    rendered = table("NODE", ">FAILURES", ">RUNS", "CAUSES", "LAST", "AVOIDED UNTIL")
    for row in rows:
        until = _day(row["until"]) if row["avoided"] else "-"
        rendered.add_row(row["node"], str(row["failures"]), str(row["runs"]), ", ".join(row["causes"]), _day(row["last"]), until)
    return rendered


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
