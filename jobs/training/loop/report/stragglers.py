"""Stragglers: ranks that are busy longer than the others, for which all must wait; their cause, and the rate without them."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ropewalk.jobs.training.loop.update.step_clock import RankRow, StepPhase

COLUMNS = ("rank", "host", "data", "forward and backward", "reduce", "update", "waits", "without a core", "throttled")
TABLE = "ranks"
Fields = dict[str, Any]
_WINDOWS = 3  # exchanges in a row that must agree
_LEAST_SHARE, _LEAST_MEAN = 0.05, 0.08  # of busy time beyond the median of the others: in each exchange, and on average
_LEAST_SECONDS, _LEAST_OF_STEP = 0.005, 0.04  # on average: shorter ones are noise, or cost nothing
_CAUSE_SHARE = 0.4  # of the excess, which a cause must explain
_SLOWER_CLOCK = 0.95  # of the median of the others
# phases between two collectives in which ranks wait for each other
_SEGMENTS = ((StepPhase.DATA, StepPhase.UPDATE), (StepPhase.FORWARD_BACKWARD,), (StepPhase.REDUCE,))


class Straggler(NamedTuple):
    """A slow rank. Shares are of the busy time of the other ranks' median."""

    rank: int
    share: float
    seconds: float  # of a step
    phase: StepPhase  # in which it loses most
    cause: str


class Stragglers:
    """Looks at the rows of all ranks, and reports stragglers that begin or end."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts  # by rank
        self._windows: deque[Sequence[RankRow]] = deque(maxlen=_WINDOWS)
        self._named: dict[int, str] = {}  # rank → cause
        self._metrics: dict[str, float] = {}

    def add(self, rows: Sequence[RankRow]) -> tuple[list[Fields], list[Fields]]:
        """Take the rows of an exchange; returns the fields of events about ranks that are slow now, and that no longer are."""
        self._windows.append(rows)
        self._metrics = _metrics(rows)
        if len(self._windows) < _WINDOWS:
            return [], []
        means = [_mean_row(each) for each in zip(*self._windows, strict=True)]
        slow = [each for each in find_stragglers(means) if all(_share(each.rank, rows) > _LEAST_SHARE for rows in self._windows)]
        named = {each.rank: each.cause for each in slow}
        faster = step_without(means, named)
        step = statistics.fmean(row.step for row in means)
        new: list[Fields] = [
            {
                "rank": each.rank,
                "host": self._hosts[each.rank],
                "share": round(each.share, 4),
                "seconds": round(each.seconds, 6),
                "phase": each.phase.name.lower(),
                "cause": each.cause,
                "step_seconds": round(step, 6),
                "rate_without": round(step / faster, 4),
            }
            for each in slow
            if self._named.get(each.rank) != each.cause
        ]
        # a rank that is near the limit is not reported again and again
        over = [rank for rank in self._named if rank not in named and _share(rank, means) < _LEAST_SHARE]
        self._named = {rank: cause for rank, cause in {**self._named, **named}.items() if rank not in over}
        return new, [{"rank": rank, "host": self._hosts[rank]} for rank in over]

    def metrics(self) -> Mapping[str, float]:
        """Return metrics of the newest rows."""
        return self._metrics

    def table(self) -> list[tuple[Any, ...]]:
        """Return the rows of the table of ranks: mean seconds of a step."""
        rows = self._windows[-1] if self._windows else ()
        values = ((*row.phases, row.waiting, row.without_core, row.throttled) for row in rows)
        return [(rank, self._hosts[rank], *(round(each, 6) for each in value)) for rank, value in enumerate(values)]


def find_stragglers(rows: Sequence[RankRow]) -> list[Straggler]:
    """Return the ranks that are busy clearly longer than the median of the others."""
    slow_ranks = []
    for rank, row in enumerate(rows):
        others = [other for number, other in enumerate(rows) if number != rank]
        share = _share(rank, rows)
        seconds = share * statistics.median(other.busy for other in others)
        if share < _LEAST_MEAN or seconds < max(_LEAST_SECONDS, _LEAST_OF_STEP * row.step):
            continue
        excess = {phase: row.phases[phase] - statistics.median(other.phases[phase] for other in others) for phase in StepPhase}
        phase = max(excess, key=lambda each: excess[each])
        slow_ranks.append(Straggler(rank, share, seconds, phase, _cause(row, others, phase, seconds)))
    return slow_ranks


def _share(rank: int, rows: Sequence[RankRow]) -> float:
    return rows[rank].busy / statistics.median(row.busy for number, row in enumerate(rows) if number != rank) - 1


def _cause(row: RankRow, others: Sequence[RankRow], phase: StepPhase, seconds: float) -> str:
    """Return the cause as far as it can be told; the phase alone, if nothing explains it."""
    without_core = row.without_core - statistics.median(other.without_core for other in others)
    throttled = row.throttled - statistics.median(other.throttled for other in others)
    clock = statistics.median(other.clock_mhz for other in others)
    if throttled > _CAUSE_SHARE * seconds and throttled >= without_core:
        return f"the CPU quota of its cgroup stops it for {throttled:.3f} s a step"
    if without_core > _CAUSE_SHARE * seconds:
        return f"other processes have its CPU for {without_core:.3f} s a step"
    if row.clock_mhz and row.clock_mhz < _SLOWER_CLOCK * clock:
        return f"its GPU's clock is {row.clock_mhz:.0f} MHz, that of the others {clock:.0f}"
    return "it waits for its data" if phase is StepPhase.DATA else ""


def step_without(rows: Sequence[RankRow], slow: Mapping[int, object]) -> float:
    """Return the seconds of a step if the others had not to wait for the slow ranks."""
    step = statistics.fmean(row.step for row in rows)
    for phases in _SEGMENTS:
        busy = [sum(row.phases[phase] for phase in phases) for row in rows]
        step -= max(busy) - max((each for rank, each in enumerate(busy) if rank not in slow), default=max(busy))
    return step


def _mean_row(rows: Sequence[RankRow]) -> RankRow:
    phases = tuple(map(statistics.fmean, zip(*(row.phases for row in rows), strict=True)))
    return RankRow(phases, *(statistics.fmean(each) for each in zip(*(row[1:] for row in rows), strict=True)))


def _metrics(rows: Sequence[RankRow]) -> dict[str, float]:
    slowest = max(range(len(rows)), key=lambda rank: rows[rank].busy)
    means = {f"ranks/{phase.name.lower()}_seconds": statistics.fmean(row.phases[phase] for row in rows) for phase in StepPhase}
    waits = {"ranks/waiting_seconds": statistics.fmean(row.waiting for row in rows)}
    return {**means, **waits, "ranks/slowest": float(slowest), "ranks/slowest_share": _share(slowest, rows)}
