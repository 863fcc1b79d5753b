"""The metrics of a run: appended by rank 0 while it holds the fence, read back by everyone."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.event_log import is_event
from ropewalk.cluster.run.file_systems import PollTimer, mount_of
from ropewalk.cluster.run.files import append_lines, parse_lines, sync_all

log = logging.getLogger(__name__)

TAIL_BYTES = 1 << 16  # holds some hundred lines
OWN_KEYS = frozenset({"step", "attempt", "time"})


class MetricLog:
    """Appends to metrics.jsonl, the truth of all metrics. One writer: rank 0 of the newest group."""

    def __init__(self, context: JobContext) -> None:
        self._path = context.run.metrics
        self._attempt = context.attempt
        self._fence = context.fence
        self._fence.check()
        _end_cut_line(self._path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line, as `line` makes it. Raises StaleAttemptError once this group of ranks has a successor."""
        self._fence.check()
        self.write([self.line(step, values)])

    def line(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """The line for metrics of this moment, as `metric_line` makes it."""
        return metric_line(self._attempt, step, values)

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append lines, all or none; the caller has checked the fence."""
        append_lines(self._path, lines)

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        with suppress(FileNotFoundError):  # there were none yet
            sync_all([self._path])


def metric_line(attempt: int, step: int, values: Mapping[str, float]) -> dict[str, Any]:
    """A line of metrics.jsonl for this moment. What is not a finite number is null: JSON has no NaN."""
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return {"step": step, "attempt": attempt, "time": time.time(), **finite}


def _end_cut_line(path: Path) -> None:
    """End a line that a machine left half written as it died: the next one would be glued to it. Readers skip the half.

    It is opened for writing, so that a client of NFS sees all that the machine which wrote before has written.
    """
    with path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END) and os.pread(stream.fileno(), 1, stream.tell() - 1) != b"\n":
            stream.write(b"\n")


def _tail(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - size))
            return stream.read()
    except FileNotFoundError:
        return b""


def read_new_lines(path: Path, offset: int, end: int = -1) -> tuple[list[dict[str, Any]], int]:
    """The complete JSON lines behind a byte offset (and before `end`, unless it is -1), and the offset behind them."""
    try:
        with path.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) < offset:  # a copy of a run was fetched anew: go on behind what is left
                offset = stream.tell()
            stream.seek(offset)
            raw = stream.read(end - offset if end >= 0 else -1)
    except FileNotFoundError:
        return [], offset
    whole = raw[: raw.rfind(b"\n") + 1]
    found = []
    for line in whole.split(b"\n"):
        try:
            value = orjson.loads(line) if line.strip() else {}  # a sweep's trials have a million lines soon
        except ValueError:  # a line that a crash has cut, or two writers' halves
            value = None
        if isinstance(value, dict):
            found += [value] if value else []
        else:
            log.warning("%s: not JSON, left out: %r", path, line[:200])
    return found, offset + len(whole)


class EventTail:
    """Follows a run's events: every `news` gives what is new in any machine's file, by time."""

    def __init__(self, run: RunDir, *, skip: bool = False) -> None:
        self._run, self._offsets = run, dict[str, int]()
        self._shared, self._looks = mount_of(run.path).shared, PollTimer(run.path)
        if skip:
            self.news()

    def news(self, *, last: bool = False) -> list[dict[str, Any]]:
        """The events since the last call; `last`: there will be no other."""
        found = []
        for path in self._run.events.files(afresh=self._shared and (self._looks.due() or last)):
            lines, self._offsets[path.name] = read_new_lines(path, self._offsets.get(path.name, 0))
            found += [line for line in lines if is_event(line)]
        return sorted(found, key=lambda line: float(line["time"]))


def broken_lines(run: RunDir) -> dict[str, int]:
    """The number of unreadable lines in each of a run's files; every reader leaves them out."""
    counts = {}
    for path in [
        run.metrics,
        *run.events.files(),
        *run.path.glob("attempts/*/*.jsonl"),
        *run.path.glob("attempts/*/nodes/*.jsonl"),
    ]:
        with suppress(FileNotFoundError):
            if broken := parse_lines(path.read_bytes())[1]:
                counts[path.relative_to(run.path).as_posix()] = broken
    return counts


def broken_words(counts: Mapping[str, int]) -> str:
    """A warning of broken lines for people; empty if there are none."""
    if not counts:
        return ""
    told = ", ".join(f"{number} of {name}" for name, number in counts.items())
    return f"lines that cannot be read, and are left out: {told} (a machine lost its power, or two wrote at once)"


def latest_metrics(run: RunDir) -> dict[str, Any]:
    """The newest value of every metric among the last lines, with step, attempt and time of the very last one."""
    raw = _tail(run.metrics, TAIL_BYTES)
    if len(raw) == TAIL_BYTES:  # begins inside a line
        raw = raw[raw.find(b"\n") + 1 :]
    newest: dict[str, Any] = {}
    for line in parse_lines(raw)[0]:
        newest.update(line if "step" in line else {})
    return newest


def curves(run: RunDir) -> dict[str, tuple[list[int], list[float]]]:
    """Each metric as (steps, values), steps ascending. Where a step was done again after a resume, the last time counts."""
    points: dict[str, dict[int, float]] = {}
    for line in run.read_metrics():
        for key, value in line.items():
            if key not in OWN_KEYS and isinstance(value, (int, float)):
                points.setdefault(key, {})[int(line["step"])] = float(value)
    ordered = {key: sorted(values.items()) for key, values in points.items()}
    return {key: ([s for s, _ in pairs], [v for _, v in pairs]) for key, pairs in ordered.items()}
