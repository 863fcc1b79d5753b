"""Other trackers than W&B, by entry point: a sidecar hands each of them the run's metrics.

Usage: python -m ropewalk.jobs.runs.mirror.trackers RUN_DIR --attempt N
A tracker is a class that is called with the run, and is a `Tracker`; an entry point of the group `ropewalk.trackers` names it. It
gets every line at least once: after a kill the lines of the last seconds come again, at the same steps.
"""

import argparse
import logging
import os
import signal
import time
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.signals import SignalFlag
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.results.metrics import OWN_KEYS, read_new_lines

log = logging.getLogger(__name__)

GROUP = "ropewalk.trackers"
FOLDER = "trackers"  # in the run directory: a folder a tracker, for its files and for how far it has got
SAVE_SECONDS = 2.0
RETRY_SECONDS = 15.0


class Tracker(Protocol):
    """Takes a run's metrics."""

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Take the metrics of a step; `seconds` since the epoch."""
        ...

    def flush(self) -> None:
        """Return when a kill of this process takes nothing of what was logged. Raises where that cannot be had."""
        ...


def find_tracker(name: str) -> Any:
    """The class of a tracker. Raises ConfigError that lists those there are."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise ConfigError(f"trackers: there is no {name!r}; installed: {', '.join(sorted(points)) or 'none'}")
    try:
        return points[name].load()
    except ImportError as error:
        raise ConfigError(f"trackers: {name} needs a package that is not installed here: {error}") from None


def place_of(run: RunDir, name: str) -> Path:
    """The folder of a tracker in the run directory."""
    folder = run.path / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Reader:
    """Hands the lines of metrics.jsonl to one tracker, from the last that it keeps; one that fails is opened again."""

    def __init__(self, run: RunDir, name: str) -> None:
        self._run, self._name, self._cursor = run, name, place_of(run, name) / "cursor.json"
        self._tracker: Tracker | None = None
        self._offset = self._kept = 0  # handed over, and known to be kept
        self._saved = self._next = 0.0
        self._said = ""

    def look(self, *, last: bool = False) -> None:
        """Hand over what is new; `last`: and have it kept."""
        if time.monotonic() < self._next and not last:
            return
        try:
            self._hand_over(last=last)
        except Exception as error:  # trackers have many; what is wrong with one is no matter of the others
            if str(error) != self._said:
                self._said = str(error)
                log.warning("%s: %s; it is opened again every %g seconds", self._name, error, RETRY_SECONDS)
            self._tracker, self._next = None, time.monotonic() + RETRY_SECONDS

    def _hand_over(self, *, last: bool) -> None:
        if self._tracker is None:
            self._tracker = find_tracker(self._name)(self._run)
            self._offset = self._kept = int((read_json(self._cursor) or {}).get("offset", 0))
            self._saved = time.monotonic()
        lines, self._offset = read_new_lines(self._run.metrics, self._offset)
        for line in lines:
            metrics = {key: value for key, value in line.items() if key not in OWN_KEYS and isinstance(value, int | float)}
            if "step" in line:
                self._tracker.log(int(line["step"]), metrics, float(line["time"]))
        if last or (self._offset != self._kept and time.monotonic() - self._saved > SAVE_SECONDS):
            self._tracker.flush()
            write_json(self._cursor, {"offset": self._offset})
            self._saved, self._kept = time.monotonic(), self._offset


def main() -> None:
    """Hand over one attempt's metrics to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s trackers %(message)s")
    os.nice(5)  # training comes first
    run, ended, parent = RunDir(arguments.run_dir), SignalFlag(), os.getppid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        ended.set()

    for word in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(word, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    readers = [Reader(run, name) for name in (run.record.get("config") or {}).get("trackers") or ()]
    while not ended.is_set() and os.getppid() == parent and run.attempts()[-1] == arguments.attempt:
        for reader in readers:
            reader.look()
        ended.wait(max(1.0, poll_seconds(run.path)))
    for reader in readers:
        reader.look(last=True)


if __name__ == "__main__":
    main()
