"""A run's own files as one numbered sequence of lines: once it was given out, the k-th line is the same for ever."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.event_log import is_event
from ropewalk.cluster.run.files import append_lines, json_text, parse_lines, sync_all, write_atomically
from ropewalk.cluster.run.names import HISTOGRAMS
from ropewalk.jobs.results.metrics import OWN_KEYS, read_new_lines

POSITION = "train/position"
MOST_SEGMENTS = 1000  # a journal of more is written anew, with neighbours joined


class Kind(StrEnum):
    """Which of a run's files a line comes from."""

    METRICS = "metrics"
    EVENT = "event"
    NODE = "node"
    HISTOGRAMS = "histograms"


_STEPPED = (Kind.METRICS, Kind.HISTOGRAMS)


@dataclass(frozen=True)
class Line:
    """A line of a run's files, with its place in the sequence."""

    number: int
    kind: Kind
    values: Mapping[str, Any]
    step: int  # of the line itself, or the newest that was known
    again: bool = False  # metrics of a step that was done before, with the same samples: a run that resumes does that

    @property
    def metrics(self) -> dict[str, float]:
        """The finite metrics of a line of metrics.jsonl."""
        return {key: value for key, value in self.values.items() if key not in OWN_KEYS and value is not None}


@dataclass
class Segment:
    """Bytes of a file whose lines stand together in the sequence."""

    file: str
    begin: int
    end: int
    lines: int
    step: int  # before the first of them
    done: dict[str, int] = field(default_factory=dict)  # as `_Done` has it, before the first of them


class _Done:
    """Which steps of a training run have had their metrics: the newest step of each kind of line, and the data position.

    A position tells a step that is done again after a resume (it was there before) from one after a rollback, which has other
    samples. Lines of programs that have no position are never taken for repeated.
    """

    def __init__(self, known: Mapping[str, int] = MappingProxyType({})) -> None:
        self.newest = dict(known)

    def again(self, kind: Kind, values: Mapping[str, Any], step: int) -> bool:
        """Whether a line repeats one; counts it if not."""
        position, known = values.get(POSITION), self.newest.get(POSITION)
        if position is not None and known is not None and position > known:  # steps from here on are new ones
            self.newest.update({key: step - 1 for key, newest in self.newest.items() if newest >= step and key != POSITION})
        name = _sections(tuple(values)) if kind is Kind.METRICS else kind.value
        if known is not None and step <= self.newest.get(name, -1):
            return True
        if position is not None:
            self.newest[POSITION] = int(position)
        self.newest[name] = step
        return False


@cache
def _sections(keys: tuple[str, ...]) -> str:
    """What a line is about, such as `train`."""
    return ",".join(sorted({key.partition("/")[0] for key in keys if key not in OWN_KEYS}))


class Feed:
    """Numbers a run's lines, in the order in which they are seen. Its journal says which bytes are which lines.

    One process at a time may hold a feed (see `Lease`): two would number the same lines twice.
    """

    def __init__(self, run: RunDir, journal: Path) -> None:
        self.run, self._journal = run, journal
        known = parse_lines(read_afresh(journal))[0]  # on NFS whoever once looked too early believes that there is none
        self._segments = [Segment(**line) for line in known]
        if len(self._segments) > MOST_SEGMENTS:
            self._segments = _joined(self._segments)
            write_atomically(journal, "".join(json_text(vars(one)) + "\n" for one in self._segments))
        self._offsets = {one.file: one.end for one in self._segments}
        self.count = sum(one.lines for one in self._segments)
        self._step, self._done = 0, _Done()
        for _ in self._read(self._segments[-1], 0) if self._segments else ():
            pass  # the state behind the last line

    def look(self, *, only_metrics: bool = False) -> list[Line]:
        """The lines that are new since the last look, in the journal before they are returned."""
        found: list[Line] = []
        segments = []
        for path in [self.run.metrics] if only_metrics else self._files():
            name = path.relative_to(self.run.path).as_posix()
            begin = self._offsets.get(name, 0)
            raw, end = read_new_lines(path, begin)
            segment = Segment(name, begin, end, 0, self._step, dict(self._done.newest))
            lines = list(self._numbered(name, raw, self.count + len(found)))
            segment.lines = len(lines)
            if end != begin:
                segments.append(segment)
                self._offsets[name] = end
            found += lines
        if segments:
            self._journal.parent.mkdir(exist_ok=True)
            append_lines(self._journal, [vars(one) for one in segments])
            sync_all([self._journal])
            self._segments += segments
            self.count += len(found)
        return found

    def again(self, number: int) -> Iterator[Line]:
        """The lines from this number on that were given out already."""
        first, now = 0, (self._step, self._done)
        for segment in self._segments:
            if first + segment.lines > number:
                found = [line for line in self._read(segment, first) if line.number >= number]
                self._step, self._done = now
                yield from found
            first += segment.lines

    def _files(self) -> list[Path]:
        nodes = sorted(self.run.path.glob("attempts/*/nodes/node-*.jsonl"))
        return [self.run.metrics, *self.run.events.files(), *nodes, self.run.path / HISTOGRAMS]

    def _read(self, segment: Segment, first: int) -> list[Line]:
        """The lines of a segment, from the state before it; leaves the state behind it."""
        raw, _ = read_new_lines(self.run.path / segment.file, segment.begin, segment.end)
        self._step, self._done = segment.step, _Done(segment.done)
        return list(self._numbered(segment.file, raw, first))[: segment.lines]

    def _numbered(self, file: str, raw: list[dict[str, Any]], first: int) -> Iterator[Line]:
        named = {self.run.metrics.name: Kind.METRICS, HISTOGRAMS: Kind.HISTOGRAMS}
        kind = named.get(file, Kind.NODE if "/nodes/" in file else Kind.EVENT)
        for values in raw:
            if _whole(kind, values):
                if kind is not Kind.NODE:
                    self._step = int(values.get("step") or self._step)
                again = kind in _STEPPED and self._done.again(kind, values, self._step)
                yield Line(first, kind, values, self._step, again)
                first += 1


def _whole(kind: Kind, values: Mapping[str, Any]) -> bool:
    """Whether a line says what one of its kind must: half of a line that was cut may be JSON too."""
    if kind is Kind.EVENT:
        return is_event(dict(values))
    if kind is Kind.HISTOGRAMS and not {"edges", "counts"} <= values.keys():
        return False
    return ("time" if kind is Kind.NODE else "step") in values


def _joined(segments: list[Segment]) -> list[Segment]:
    """Neighbours of one file as one."""
    found: list[Segment] = []
    for one in segments:
        if found and (found[-1].file, found[-1].end) == (one.file, one.begin):
            found[-1] = replace(found[-1], end=one.end, lines=found[-1].lines + one.lines)
        else:
            found.append(one)
    return found
