"""The metrics of a run: appended by rank 0 while it holds the fence, read back by everyone."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from cluster.context import JobContext
from cluster.files import append_line
from cluster.run_dir import RunDir

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
        _drop_cut_line(self._path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line. What is not a finite number is written as null: JSON has no NaN.

        Raises StaleAttemptError once this group of ranks has a successor.
        """
        self._fence.check()
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        append_line(self._path, {"step": step, "attempt": self._attempt, "time": time.time(), **finite})


def _drop_cut_line(path: Path) -> None:
    """A machine that died while it wrote leaves half a line; the next one would be glued to it."""
    if not path.exists():
        return
    raw = _tail(path, TAIL_BYTES)
    if raw and not raw.endswith(b"\n"):
        os.truncate(path, path.stat().st_size - (len(raw) - raw.rfind(b"\n") - 1))


def _tail(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - size))
            return stream.read()
    except FileNotFoundError:
        return b""


def read_new_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete JSON lines behind a byte offset, and the offset behind them."""
    try:
        with path.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) < offset:  # a cut line was dropped: go on behind what is left
                offset = stream.tell()
            stream.seek(offset)
            raw = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = raw[: raw.rfind(b"\n") + 1]
    found = []
    for line in whole.split(b"\n"):
        try:
            found += [orjson.loads(line)] if line.strip() else []  # a sweep's trials have a million lines soon
        except ValueError:  # two writers' halves after a crash
            log.warning("%s: not JSON, left out: %r", path, line[:200])
    return found, offset + len(whole)


def latest_metrics(run: RunDir) -> dict[str, Any]:
    """The newest value of every metric among the last lines, with step, attempt and time of the very last one."""
    raw = _tail(run.metrics, TAIL_BYTES)
    if len(raw) == TAIL_BYTES:  # begins inside a line
        raw = raw[raw.find(b"\n") + 1 :]
    newest: dict[str, Any] = {}
    for line in raw.split(b"\n")[:-1]:
        newest.update(json.loads(line))
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
