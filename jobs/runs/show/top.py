"""Output of `ropewalk top`: active runs and their nodes, read from files only."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from ropewalk.cluster.errors import DamagedFileError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import parse_lines
from ropewalk.jobs.results.metrics import latest_metrics
from ropewalk.jobs.runs.show import status
from ropewalk.jobs.runs.show.tables import top_page

REFRESH_SECONDS = 1.0
LAST_LINE_BYTES = 4096


def rows() -> list[dict[str, Any]]:
    """Return every active run with its newest metrics and the newest sample of each node."""
    runs = status.all_runs()
    try:
        return _rows(runs)
    except DamagedFileError:
        return _rows(status.readable(runs))


def _rows(runs: Sequence[RunDir]) -> list[dict[str, Any]]:
    active = [run for run in runs if not status.is_final(run)]
    states = status.states(active)
    summaries = []
    for run in active:
        attempts = run.attempts()
        folder = run.attempt_dir(attempts[-1]) / "nodes" if attempts else None
        paths = sorted(folder.glob("node-*.jsonl")) if folder else []
        samples = [sample for path in paths if (sample := last_sample(path)) is not None]
        summaries.append({**status.summary(run, states[run.id]), "metrics": latest_metrics(run), "node_samples": samples})
    return summaries


def last_sample(path: Path) -> dict[str, Any] | None:
    """Read the last complete sample of a node, or None."""
    with path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - LAST_LINE_BYTES))
        samples = [line for line in parse_lines(stream.read())[0] if "node" in line and "time" in line]
    return samples[-1] if samples else None


def watch(console: Console, once: bool) -> None:
    """Print the table, and update it every second unless `once`."""
    if once or not console.is_terminal:
        console.print(top_page(rows()))
        return
    with Live(top_page(rows()), console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(REFRESH_SECONDS)
            live.update(top_page(rows()), refresh=True)
