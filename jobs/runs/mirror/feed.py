"""A run's files as one numbered sequence of lines: once assigned, the number of a line never changes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ropewalk.cluster.config import Resources
from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.event_log import is_event
from ropewalk.cluster.run.files import append_lines, json_text, parse_lines, sync_all, write_atomically
from ropewalk.cluster.run.names import HISTOGRAMS, NODES
from ropewalk.jobs.results.metrics import OWN_KEYS, read_new_lines
from ropewalk.jobs.runs.mirror.node_summary import NodeSummary

POSITION = "train/position"
MOST_NODES = 8  # of an attempt: samples of more nodes are summarized
MOST_SEGMENTS = 1000  # a longer journal is rewritten with adjacent segments merged


class Kind(StrEnum):
    """Type of the file that a line comes from."""

    METRICS = "metrics"
    EVENT = "event"
    NODE = "node"
    NODES = "nodes"  # a summary over many nodes
    HISTOGRAMS = "histograms"


_STEPPED = (Kind.METRICS, Kind.HISTOGRAMS)


@dataclass(frozen=True)
class Line:
    """A line of a run's files with its number in the sequence."""

    number: int
    kind: Kind
    values: Mapping[str, Any]
    step: int  # of the line itself, or the newest step before it
    again: bool = False  # metrics of a step that is repeated with the same samples after a resume

    @property
    def metrics(self) -> dict[str, float]:
        """Finite metrics of a line of metrics.jsonl."""
        return {key: value for key, value in self.values.items() if key not in OWN_KEYS and value is not None}


@dataclass
class Segment:
    """Range of bytes in a file whose lines are consecutive in the sequence."""

    file: str
    begin: int
    end: int
    lines: int
    step: int  # before its first line
    done: dict[str, int] = field(default_factory=dict)  # `_Done.newest` before its first line


class _Done:
    """Newest step of each type of line, and the newest data position, to recognize repeated steps.

    The position distinguishes a step that is repeated after a resume from one after a rollback, which has other samples. Lines
    of programs without a position never count as repeated.
    """

    def __init__(self, newest: Mapping[str, int] = MappingProxyType({})) -> None:
        self.newest = dict(newest)

    def again(self, kind: Kind, values: Mapping[str, Any], step: int) -> bool:
        """Return True if a line repeats an earlier one; otherwise record it."""
        position, newest_position = values.get(POSITION), self.newest.get(POSITION)
        if position is not None and newest_position is not None and position > newest_position:  # all further steps are new
            self.newest.update({key: step - 1 for key, newest in self.newest.items() if newest >= step and key != POSITION})
        name = _sections(tuple(values)) if kind is Kind.METRICS else kind.value
        if newest_position is not None and step <= self.newest.get(name, -1):
            return True
        if position is not None:
            self.newest[POSITION] = int(position)
        self.newest[name] = step
        return False


@cache
def _sections(keys: tuple[str, ...]) -> str:
    """Return the sections of a line's metrics, such as `train`."""
    return ",".join(sorted({key.partition("/")[0] for key in keys if key not in OWN_KEYS}))


class Feed:
    """Numbers a run's lines in the order in which they are read, and records the bytes of each number range in a journal.

    Only one process at a time may use a feed (see `Lease`), since two would number the same lines twice.
    """

    def __init__(self, run: RunDir, journal: Path) -> None:
        self.run, self._journal = run, journal
        self._summary = NodeSummary(journal.with_name(f"{journal.stem}-nodes.jsonl"))
        entries = parse_lines(read_afresh(journal))[0]  # an NFS client may have cached that the file is missing
        self._segments = [Segment(**line) for line in entries]
        if len(self._segments) > MOST_SEGMENTS:
            self._segments = _merge_adjacent(self._segments)
            write_atomically(journal, "".join(json_text(vars(segment)) + "\n" for segment in self._segments))
        self._sizes = dict[int, int]()
        self._offsets = {segment.file: segment.end for segment in self._segments}
        self.count = sum(segment.lines for segment in self._segments)
        self._step, self._done = 0, _Done()
        for _ in self._read(self._segments[-1], 0) if self._segments else ():
            pass  # sets the state after the last line

    def look(self, *, only_metrics: bool = False, last: bool = False) -> list[Line]:
        """Return the lines that are new since the last call, after recording them in the journal. `last`: no call follows."""
        new_lines: list[Line] = []
        segments = []
        for path in [self.run.metrics] if only_metrics else self._files(last=last):
            name = path.relative_to(self.run.path).as_posix()
            begin = self._offsets.get(name, 0)
            raw, end = read_new_lines(path, begin)
            segment = Segment(name, begin, end, 0, self._step, dict(self._done.newest))
            lines = list(self._number_lines(name, raw, self.count + len(new_lines)))
            segment.lines = len(lines)
            if end != begin:
                segments.append(segment)
                self._offsets[name] = end
            new_lines += lines
        if segments:
            self._journal.parent.mkdir(exist_ok=True)
            append_lines(self._journal, [vars(segment) for segment in segments])
            sync_all([self._journal])
            self._segments += segments
            self.count += len(new_lines)
        return new_lines

    def again(self, number: int) -> Iterator[Line]:
        """Yield already numbered lines again, starting with `number`."""
        first, now = 0, (self._step, self._done)
        for segment in self._segments:
            if first + segment.lines > number:
                lines = [line for line in self._read(segment, first) if line.number >= number]
                self._step, self._done = now
                yield from lines
            first += segment.lines

    def _files(self, *, last: bool) -> list[Path]:
        few, many = list[Path](), list[Path]()
        for attempt in self.run.attempts():
            (many if self._most_nodes(attempt) > MOST_NODES else few).append(self.run.attempt_dir(attempt) / NODES)
        if many:
            self._summary.update(many, self.run.path, last=last)
        nodes = [path for folder in few for path in sorted(folder.glob("node-*.jsonl"))]
        return [self.run.metrics, *self.run.events.files(), *nodes, self._summary.path, self.run.path / HISTOGRAMS]

    def _most_nodes(self, attempt: int) -> int:
        if attempt not in self._sizes:
            resources = self.run.attempt_details(attempt).get("resources") or self.run.record.get("resources") or {}
            self._sizes[attempt] = Resources.model_validate(resources).nodes.most
        return self._sizes[attempt]

    def _read(self, segment: Segment, first: int) -> list[Line]:
        """Return the lines of a segment; sets the state to that after the segment."""
        raw, _ = read_new_lines(self.run.path / segment.file, segment.begin, segment.end)
        self._step, self._done = segment.step, _Done(segment.done)
        return list(self._number_lines(segment.file, raw, first))[: segment.lines]

    def _number_lines(self, file: str, raw: list[dict[str, Any]], first: int) -> Iterator[Line]:
        summaries = self._summary.path.relative_to(self.run.path).as_posix()
        by_name = {self.run.metrics.name: Kind.METRICS, HISTOGRAMS: Kind.HISTOGRAMS, summaries: Kind.NODES}
        kind = by_name.get(file, Kind.NODE if "/nodes/" in file else Kind.EVENT)
        for values in raw:
            if _is_complete(kind, values):
                if kind not in (Kind.NODE, Kind.NODES):
                    self._step = int(values.get("step") or self._step)
                again = kind in _STEPPED and self._done.again(kind, values, self._step)
                yield Line(first, kind, values, self._step, again)
                first += 1


def _is_complete(kind: Kind, values: Mapping[str, Any]) -> bool:
    """Return True if a line has the keys of its kind: a part of a damaged line may be valid JSON."""
    if kind is Kind.EVENT:
        return is_event(dict(values))
    if kind is Kind.HISTOGRAMS and not {"edges", "counts"} <= values.keys():
        return False
    if kind is Kind.NODES and not {"nodes", "min", "mean", "max", "outliers"} <= values.keys():
        return False
    return ("time" if kind in (Kind.NODE, Kind.NODES) else "step") in values


def _merge_adjacent(segments: list[Segment]) -> list[Segment]:
    """Merge consecutive segments that are adjacent in the same file."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and (merged[-1].file, merged[-1].end) == (segment.file, segment.begin):
            merged[-1] = replace(merged[-1], end=segment.end, lines=merged[-1].lines + segment.lines)
        else:
            merged.append(segment)
    return merged
