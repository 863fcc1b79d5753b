"""Sidecar that sends a run's metrics to trackers other than W&B.

Usage: python -m ropewalk.jobs.runs.mirror.trackers RUN_DIR --attempt N
A tracker is a class that implements `Tracker` and is constructed with the run, registered in the entry-point group
`ropewalk.trackers`. It gets every line at least once: after a kill, the lines of the last seconds are repeated.
"""

import argparse
import logging
import os
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.signals import SignalFlag, install_end_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.results.metrics import OWN_KEYS, read_new_lines

log = logging.getLogger(__name__)

GROUP = "ropewalk.trackers"
FOLDER = "trackers"  # in the run directory: one folder per tracker, for its files and its cursor
SAVE_SECONDS = 2.0
RETRY_SECONDS = 15.0


class Tracker(Protocol):
    """Receiver of a run's metrics."""

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Log the metrics of a step; `seconds` since the epoch."""
        ...

    def flush(self) -> None:
        """Make everything that was logged durable, so that a kill of this process loses nothing. Raises if that fails."""
        ...


def find_tracker(name: str) -> Any:
    """Return the class of a tracker. Raises ConfigError."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise ConfigError(f"trackers: {name} is not installed; installed: {', '.join(sorted(points)) or 'none'}")
    try:
        return points[name].load()
    except ImportError as error:
        raise ConfigError(f"trackers: {name} needs a package that is not installed here: {error}") from None


def tracker_folder(run: RunDir, name: str) -> Path:
    """Create and return the folder of a tracker in the run directory."""
    folder = run.path / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Reader:
    """Sends the lines of metrics.jsonl to a tracker, starting after the last durable one; reopens a tracker that fails."""

    def __init__(self, run: RunDir, name: str) -> None:
        self._run, self._name, self._cursor = run, name, tracker_folder(run, name) / "cursor.json"
        self._tracker: Tracker | None = None
        self._offset = self._durable = 0  # bytes that were sent, and that are durable
        self._saved = self._next = 0.0
        self._last_error = ""

    def look(self, *, last: bool = False) -> None:
        """Send new lines; `last`: also make them durable."""
        if time.monotonic() < self._next and not last:
            return
        try:
            self._send(last=last)
        except Exception as error:  # any error of a tracker; the other trackers go on
            if str(error) != self._last_error:
                self._last_error = str(error)
                log.warning("%s: %s; reopening the tracker every %g seconds", self._name, error, RETRY_SECONDS)
            self._tracker, self._next = None, time.monotonic() + RETRY_SECONDS

    def _send(self, *, last: bool) -> None:
        if self._tracker is None:
            self._tracker = find_tracker(self._name)(self._run)
            self._offset = self._durable = int((read_json(self._cursor) or {}).get("offset", 0))
            self._saved = time.monotonic()
        lines, self._offset = read_new_lines(self._run.metrics, self._offset)
        for line in lines:
            metrics = {key: value for key, value in line.items() if key not in OWN_KEYS and isinstance(value, int | float)}
            if "step" in line:
                self._tracker.log(int(line["step"]), metrics, float(line["time"]))
        if last or (self._offset != self._durable and time.monotonic() - self._saved > SAVE_SECONDS):
            self._tracker.flush()
            write_json(self._cursor, {"offset": self._offset})
            self._saved, self._durable = time.monotonic(), self._offset


def main() -> None:
    """Send the metrics of one attempt to its trackers until its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s trackers %(message)s")
    run, ended, parent = RunDir(arguments.run_dir), SignalFlag(), os.getppid()
    install_end_handler(ended.set)
    readers = [Reader(run, name) for name in (run.record.get("config") or {}).get("trackers") or ()]
    while not ended.is_set() and os.getppid() == parent and run.attempts()[-1] == arguments.attempt:
        for reader in readers:
            reader.look()
        ended.wait(max(1.0, poll_seconds(run.path)))
    for reader in readers:
        reader.look(last=True)


if __name__ == "__main__":
    main()
