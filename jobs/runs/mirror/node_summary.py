"""Samples of many nodes, summarized over the nodes: a tracker with curves of each of a thousand nodes is of no use."""

import heapq
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import read_json_afresh
from ropewalk.cluster.run.files import append_lines, sync_all, write_json
from ropewalk.jobs.results.metrics import read_new_lines

WINDOW_SECONDS = 60.0  # of samples that are summarized in one line
CHUNK_BYTES = 1 << 16
MOST_OUTLIERS = 3  # of a metric in one window
# an outlier is farther from the median than these multiples of the interquartile range and of the median itself
OUTLIER_RANGES, OUTLIER_SHARE = 3.0, 0.2

Values = Mapping[str, float]


class NodeSummary:
    """File of summaries: each line has minimum, mean and maximum over the nodes in one window, and the values of outliers."""

    def __init__(self, path: Path) -> None:
        self.path, self._state_path = path, path.with_suffix(".json")
        self._next = 0.0

    @cached_property
    def _offsets(self) -> dict[str, int]:
        return dict(read_json_afresh(self._state_path) or {})

    def update(self, folders: Sequence[Path], root: Path, *, last: bool = False) -> None:
        """Summarize the new samples of the nodes in some folders below `root`, once per window. `last`: no call follows.

        After a crash the samples of the last window may be summarized twice.
        """
        if time.monotonic() < self._next and not last:
            return
        self._next = time.monotonic() + WINDOW_SECONDS
        files = [path for folder in folders for path in sorted(folder.glob("node-*.jsonl"))]
        samples = heapq.merge(*(self._new_samples(path, path.relative_to(root).as_posix()) for path in files), key=_time)
        lines = [summarize(window) for window in _windows(samples)]
        if lines:
            self.path.parent.mkdir(exist_ok=True)
            append_lines(self.path, lines)
            sync_all([self.path])
            write_json(self._state_path, self._offsets)

    def _new_samples(self, path: Path, name: str) -> Iterator[dict[str, Any]]:
        while True:
            offset = self._offsets.get(name, 0)
            lines, self._offsets[name] = read_new_lines(path, offset, offset + CHUNK_BYTES)
            yield from (line for line in lines if isinstance(line.get("time"), int | float) and "node" in line)
            if self._offsets[name] == offset:
                return


def _windows(samples: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Split samples in the order of time into windows; the last one is longer, since a part of a window lacks some nodes."""
    previous, window, begin = list[dict[str, Any]](), list[dict[str, Any]](), 0.0
    for sample in samples:
        if _time(sample) >= begin + WINDOW_SECONDS:
            if previous:
                yield previous
            previous, window, begin = window, [], _time(sample)
        window.append(sample)
    if window:
        yield previous + window


def _time(sample: Mapping[str, Any]) -> float:
    return float(sample["time"])


def summarize(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize samples of one window over their nodes; a node with several samples counts with their means."""
    by_metric: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    newest = 0.0
    for sample in samples:
        newest = max(newest, _time(sample))
        for key, value in sample.items():
            if key not in ("time", "node") and isinstance(value, int | float):
                by_metric[key][str(sample["node"])].append(value)
    means = {key: {node: statistics.fmean(values) for node, values in nodes.items()} for key, nodes in by_metric.items()}
    outliers: dict[str, dict[str, float]] = defaultdict(dict)
    for key, by_node in means.items():
        for node in _outliers(by_node):
            outliers[node][key] = round(by_node[node], 3)
    return {
        "time": newest,
        "nodes": max((len(by_node) for by_node in means.values()), default=0),
        "min": {key: round(min(by_node.values()), 3) for key, by_node in means.items()},
        "mean": {key: round(statistics.fmean(by_node.values()), 3) for key, by_node in means.items()},
        "max": {key: round(max(by_node.values()), 3) for key, by_node in means.items()},
        "outliers": outliers,
    }


def _outliers(by_node: Values) -> list[str]:
    """Return the nodes whose values are far from those of the others, the farthest first."""
    if len(by_node) < 4:
        return []
    lower, median, upper = statistics.quantiles(by_node.values(), n=4)
    normal = max(OUTLIER_RANGES * (upper - lower), OUTLIER_SHARE * abs(median))
    distances = {node: abs(value - median) for node, value in by_node.items()}
    return [node for node in sorted(distances, key=lambda node: -distances[node]) if distances[node] > normal][:MOST_OUTLIERS]
