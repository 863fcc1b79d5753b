"""Output of `ropewalk top`: active runs and their nodes, read from files only."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from ropewalk.cluster.errors import DamagedFileError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import SAMPLES_TAIL_BYTES, parse_lines, read_tail
from ropewalk.jobs.results.metrics import latest_metrics
from ropewalk.jobs.runs.show import status
from ropewalk.jobs.runs.show.open_runs import open_runs
from ropewalk.jobs.runs.show.tables import top_page

REFRESH_SECONDS = 1.0
LISTING_PAUSE = 10.0  # times the duration of a listing, between two listings


def rows(runs: Sequence[RunDir] | None = None) -> list[dict[str, Any]]:
    """Return every active run, or those of `runs`, with its newest metrics and the newest sample of each node."""
    runs = open_runs(status.roots())[0] if runs is None else runs
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
    samples = [line for line in parse_lines(read_tail(path, SAMPLES_TAIL_BYTES))[0] if "node" in line and "time" in line]
    return samples[-1] if samples else None


def pages(once: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows every second, or once."""
    if once:
        yield rows()
        return
    next_listing, runs = time.monotonic(), list[RunDir]()
    while True:
        if (started := time.monotonic()) >= next_listing:
            runs = open_runs(status.roots())[0]
            next_listing = started + LISTING_PAUSE * (time.monotonic() - started)
        yield rows(runs)
        time.sleep(REFRESH_SECONDS)


def watch(console: Console, once: bool) -> None:
    """Print the table, and update it every second unless `once`."""
    if once or not console.is_terminal:
        console.print(top_page(rows()))
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for page in pages(once=False):
            live.update(top_page(page), refresh=True)
