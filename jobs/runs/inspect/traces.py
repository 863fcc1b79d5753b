"""Traces of several ranks merged into one file for Perfetto, and a table of what took the time."""

import gzip
import io
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.run.files import write_atomically

DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})  # categories of events on a GPU
HOST = frozenset({"cpu_op", "user_annotation"})
NO_PROCESS = frozenset({"Spans", "Traces"})  # of events about the trace itself
OUTSIDE = "Python and waiting"  # time of a step outside of all operators
_Times = dict[tuple[str, bool], dict[int, tuple[float, int]]]  # by name and device: microseconds and calls by rank
_PROCESSES = 1000  # most processes, with devices, of a rank's trace


@dataclass(frozen=True, kw_only=True)
class TimeRow:
    """Time of an operator or kernel in a profile."""

    name: str
    device: bool  # on a GPU
    milliseconds: float  # of a step, without the operators inside, mean over ranks
    share: float  # of the step
    calls: float  # of a step and rank
    slowest_rank: int
    slowest_milliseconds: float  # of a step


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Result of a profile of several ranks."""

    steps: dict[int, list[int]]  # of each rank's trace
    step_milliseconds: dict[int, float]  # mean by rank
    rows: list[TimeRow]


def merge_traces(paths: Mapping[int, Path], target: Path) -> Profile:
    """Merge the traces of ranks into one file of Chrome's trace format, which Perfetto opens."""
    events: list[dict[str, Any]] = []
    times: _Times = defaultdict(dict)
    steps, lengths, base = dict[int, list[int]](), dict[int, float](), None
    for rank, path in sorted(paths.items()):
        trace = orjson.loads(gzip.decompress(path.read_bytes()))
        start = int(trace.get("baseTimeNanoseconds", 0))
        base = start if base is None else base
        rank_events = [event for event in trace["traceEvents"] if event.get("pid") not in NO_PROCESS]
        spans = _step_spans(rank_events)
        steps[rank], lengths[rank] = sorted(spans), statistics.fmean(spans.values()) / 1000 if spans else 0.0
        for (name, device), time in _self_times(rank_events).items():
            times[OUTSIDE if name.startswith("step ") else name, device][rank] = _added(times[name, device].get(rank), time)
        events += _moved(rank_events, rank, (start - base) / 1000)
    write_atomically(target, _compressed({"traceEvents": events, "displayTimeUnit": "ms", "baseTimeNanoseconds": base or 0}))
    return Profile(steps=steps, step_milliseconds=lengths, rows=_rows(times, steps, lengths))


def _compressed(value: Any) -> bytes:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=3, mtime=0) as file:
        file.write(orjson.dumps(value))
    return stream.getvalue()


def _step_spans(events: list[dict[str, Any]]) -> dict[int, float]:
    """Return the microseconds of each step that the trace has."""
    return {
        int(event["name"].removeprefix("step ")): event["dur"]
        for event in events
        if event.get("cat") == "user_annotation" and event.get("ph") == "X" and event["name"].startswith("step ")
    }


def _self_times(events: list[dict[str, Any]]) -> dict[tuple[str, bool], tuple[float, int]]:
    """Return microseconds without those of nested events, and calls, by name and whether it ran on a GPU."""
    by_thread: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    totals: dict[tuple[str, bool], tuple[float, int]] = {}
    for event in events:
        if event.get("ph") != "X":
            continue
        if event.get("cat") in DEVICE:
            totals[event["name"], True] = _added(totals.get((event["name"], True)), (event["dur"], 1))
        elif event.get("cat") in HOST:
            by_thread[event["pid"], event["tid"]].append(event)
    for thread in by_thread.values():
        for name, microseconds in _without_nested(thread):
            totals[name, False] = _added(totals.get((name, False)), (microseconds, 1))
    return totals


def _without_nested(events: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield each event of a thread with its own time."""
    stack: list[list[Any]] = []  # name, end, own time
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while stack and stack[-1][1] <= event["ts"]:
            name, _, left = stack.pop()
            yield name, max(0.0, left)
        if stack:
            stack[-1][2] -= event["dur"]
        stack.append([event["name"], event["ts"] + event["dur"], event["dur"]])
    for name, _, left in stack:
        yield name, max(0.0, left)


def _added(sum_: tuple[float, int] | None, time: tuple[float, int]) -> tuple[float, int]:
    return time if sum_ is None else (sum_[0] + time[0], sum_[1] + time[1])


def _moved(events: list[dict[str, Any]], rank: int, offset: float) -> Iterator[dict[str, Any]]:
    """Yield the events with numbers of processes and flows that are the rank's own, and times from the common base."""
    numbers: dict[Any, int] = {}
    for event in events:
        moved = dict(event)
        if "ts" in moved:
            moved["ts"] += offset
        if "pid" in moved:
            moved["pid"] = rank * _PROCESSES + numbers.setdefault(event["pid"], len(numbers))
        if "id" in moved:
            moved["id"] = f"{rank}.{moved['id']}"
        if moved.get("name") == "process_name" and moved.get("ph") == "M":
            moved["args"] = {"name": f"rank {rank}: {event['args'].get('name', '')}"}
        if moved.get("name") == "process_sort_index" and moved.get("ph") == "M":
            moved["args"] = {"sort_index": moved["pid"]}
        yield moved


def _rows(times: _Times, steps: Mapping[int, list[int]], lengths: Mapping[int, float]) -> list[TimeRow]:
    num_steps = max(1, *map(len, steps.values()))
    step_milliseconds = statistics.fmean(lengths.values()) or 1.0
    rows = []
    for (name, device), by_rank in times.items():
        if not by_rank:
            continue
        of_step = {rank: microseconds / num_steps / 1000 for rank, (microseconds, _) in by_rank.items()}
        mean = sum(of_step.values()) / len(steps)
        slowest = max(of_step, key=lambda rank: of_step[rank])
        rows.append(
            TimeRow(
                name=name,
                device=device,
                milliseconds=mean,
                share=mean / step_milliseconds,
                calls=sum(calls for _, calls in by_rank.values()) / num_steps / len(steps),
                slowest_rank=slowest,
                slowest_milliseconds=of_step[slowest],
            )
        )
    return sorted(rows, key=lambda row: -row.milliseconds)
