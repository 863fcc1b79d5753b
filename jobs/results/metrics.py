"""Metrics of a run: appended by rank 0 while its group is the newest, and read by everyone."""

import logging
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.event_log import is_event
from ropewalk.cluster.run.file_systems import PollTimer, mount_of
from ropewalk.cluster.run.files import (
    SAMPLES_TAIL_BYTES,
    TAIL_BYTES,
    append_lines,
    iterate_lines,
    parse_lines,
    read_tail,
    sync_all,
)

log = logging.getLogger(__name__)

OWN_KEYS = frozenset({"step", "attempt", "time"})
FEW_BYTES = 1 << 12  # some lines


class MetricLog:
    """Appends to metrics.jsonl, the source of all metrics. The only writer is rank 0 of the newest group."""

    def __init__(self, context: JobContext) -> None:
        self._path = context.run.metrics
        self._attempt = context.attempt
        self._fence = context.fence
        self._fence.check()
        _end_cut_line(self._path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line. Raises StaleAttemptError once a newer group of ranks exists."""
        self._fence.check()
        self.write([self.line(step, values)])

    def line(self, step: int, values: Mapping[str, float], when: float | None = None) -> dict[str, Any]:
        """Return a line of the file; `when` is in seconds since the epoch, and now if it is None."""
        return metric_line(self._attempt, step, values, when)

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append lines, all or none; the caller must have checked the fence."""
        append_lines(self._path, lines)

    def sync(self) -> None:
        with suppress(FileNotFoundError):  # nothing written yet
            sync_all([self._path])


def metric_line(attempt: int, step: int, values: Mapping[str, float], when: float | None = None) -> dict[str, Any]:
    """Return a line of metrics.jsonl, by default of this moment. Non-finite numbers become null, as JSON has no NaN."""
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return {"step": step, "attempt": attempt, "time": time.time() if when is None else when, **finite}


def _end_cut_line(path: Path) -> None:
    """Terminate a line left incomplete by a crash, so that the next line is not appended to it; readers skip the fragment.

    Opening the file for writing makes an NFS client see everything that another machine has written.
    """
    with path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END) and os.pread(stream.fileno(), 1, stream.tell() - 1) != b"\n":
            stream.write(b"\n")


def read_new_lines(path: Path, offset: int, end: int = -1) -> tuple[list[dict[str, Any]], int]:
    """Return the complete JSON lines after a byte offset (before `end`, unless it is -1), and the offset after them."""
    try:
        with path.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) < offset:  # the copy of the run was replaced by a shorter one
                offset = stream.tell()
            stream.seek(offset)
            raw = stream.read(end - offset if end >= 0 else -1)
    except FileNotFoundError:
        return [], offset
    whole = raw[: raw.rfind(b"\n") + 1]
    values = []
    for line in whole.split(b"\n"):
        try:
            value = orjson.loads(line) if line.strip() else {}  # fast parsing: a sweep's trials have millions of lines
        except ValueError:  # cut by a crash, or mixed from two writers
            value = None
        if isinstance(value, dict):
            values += [value] if value else []
        else:
            log.warning("%s: skipping a line that is not JSON: %r", path, line[:200])
    return values, offset + len(whole)


class EventTail:
    """Follows a run's events: `new_events` returns what any machine has written since the last call, by time."""

    def __init__(self, run: RunDir, *, skip: bool = False) -> None:
        self._run, self._offsets = run, dict[str, int]()
        self._shared, self._looks = mount_of(run.path).shared, PollTimer(run.path)
        if skip:
            self.new_events()

    def new_events(self, *, last: bool = False) -> list[dict[str, Any]]:
        """Return the events since the last call, by time; set `last` if no call follows."""
        events = []
        for path in self._run.events.files(afresh=self._shared and (self._looks.due() or last)):
            lines, self._offsets[path.name] = read_new_lines(path, self._offsets.get(path.name, 0))
            events += [line for line in lines if is_event(line)]
        return sorted(events, key=lambda line: float(line["time"]))


def broken_lines(run: RunDir) -> dict[str, int]:
    """Count the unreadable lines at the end of the metrics, the events and the files of the newest attempt; readers skip them."""
    sizes = dict.fromkeys((run.metrics, *run.events.files()), TAIL_BYTES)
    if attempts := run.attempts():
        folder = run.attempt_dir(attempts[-1])
        sizes |= dict.fromkeys(sorted(folder.glob("*.jsonl")), TAIL_BYTES)
        sizes |= dict.fromkeys(sorted(folder.glob("nodes/*.jsonl")), SAMPLES_TAIL_BYTES)
    counts = {path.relative_to(run.path).as_posix(): parse_lines(read_tail(path, size))[1] for path, size in sizes.items()}
    return {name: number for name, number in counts.items() if number}


def broken_words(counts: Mapping[str, int]) -> str:
    """Return a warning about unreadable lines, or an empty string."""
    if not counts:
        return ""
    files = ", ".join(f"{number} of {name}" for name, number in counts.items())
    return f"skipped unreadable lines: {files} (power loss, or two machines writing at once)"


def latest_metrics(run: RunDir, keys: Set[str] | None = None) -> dict[str, Any]:
    """Return the newest value of every metric in the last lines, with step, attempt and time of the last line.

    With `keys` as few lines are read as have these; other metrics may be missing.
    """
    newest: dict[str, Any] = {}
    for size in (FEW_BYTES, TAIL_BYTES) if keys else (TAIL_BYTES,):
        raw = read_tail(run.metrics, size)
        for line in parse_lines(raw)[0]:
            newest.update(line if "step" in line else {})
        if keys and keys <= newest.keys():
            break
    return newest


Curve = tuple[list[int], list[float]]  # steps, ascending, and the value of each


def curves(run: RunDir, keys: Collection[str] | None = None) -> dict[str, Curve]:
    """Return each metric, or these only, as (steps, values) in ascending steps; of repeated steps the last value counts."""
    if keys is not None and (columns := _columns(run.metrics, keys)) is not None:
        return columns
    points: dict[str, dict[int, float]] = {}
    for line in iterate_lines(run.metrics):
        for key in line if keys is None else keys:
            if key not in OWN_KEYS and isinstance(value := line.get(key), (int, float)) and "step" in line:
                points.setdefault(key, {})[int(line["step"])] = float(value)
    ordered = {key: sorted(values) for key, values in points.items()}
    return {key: (steps, [points[key][step] for step in steps]) for key, steps in ordered.items()}


def _columns(path: Path, keys: Collection[str]) -> dict[str, Curve] | None:
    """Return the curves of metrics, read without the interpreter's lock; None if a line is unusual, or a package is missing."""
    try:
        import numpy as np
        import pyarrow as pa
        from pyarrow import json
    except ModuleNotFoundError:
        return None
    names = [key for key in dict.fromkeys(keys) if key not in OWN_KEYS]
    schema = pa.schema([("step", pa.int64()), *((name, pa.float64()) for name in names)])
    parsing = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = json.read_json(str(path), json.ReadOptions(use_threads=False), parsing)
    except (pa.ArrowInvalid, OSError):
        return None
    by_name: dict[str, Curve] = {}
    for name in names:
        columns = table.select(["step", name]).drop_null()
        # not by to_numpy(), which imports pandas if it is installed: 0.3 s of the first page with curves
        steps, values = (np.from_dlpack(column.combine_chunks()) for column in columns.columns)
        if not (steps[1:] > steps[:-1]).all():  # of repeated steps the last value counts
            steps, newest = np.unique(steps[::-1], return_index=True)
            values = values[::-1][newest]
        by_name |= {name: (steps.tolist(), values.tolist())} if len(steps) else {}
    return by_name
