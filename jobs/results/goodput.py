"""Goodput: the seconds of a run by class, from what its directory holds. Every second has exactly one class."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any, TypeVar

from ropewalk.cluster.errors import EXIT_DONE, EXIT_REQUEUE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import SAMPLES_TAIL_BYTES, parse_lines, read_lines, read_tail
from ropewalk.cluster.run.names import AGENTS, NODES
from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.cluster.spec import Engine, Outcome

log = logging.getLogger(__name__)

SECTION, UNIT = "goodput/", "_seconds"  # of the metrics
SHARE = f"{SECTION}share"
COUNTED = "time_counted"  # event: rank 0 of a group begins to count
RETRY = "retry"  # `opened_by` of an attempt that did not queue
MOST_NODES = 8  # whose samples are searched for those of rank 0's node
SILENT_SECONDS = 2.0  # after which a node counts as lost
SLACK_SECONDS = 0.002  # between rank 0's last count, whose figures are rounded, and a fact that follows it
USEFUL = frozenset({TimeClass.TRAINING, TimeClass.RUNNING})
_RECOVERING = TimeClass.RECOVERING
UNALLOCATED = frozenset({TimeClass.QUEUED, TimeClass.STOPPED})  # not counted in the share
LOSSES = frozenset({"rank_lost", "node_lost", "node_silent"})

Seconds = Mapping[TimeClass, float]
T = TypeVar("T")


@dataclass(frozen=True)
class AttemptTimes:
    """Times of an attempt, in seconds since the epoch."""

    number: int
    opened: float
    opened_by: str
    agents: Sequence[tuple[float, int]]  # start and node of each agent
    outcome: Outcome | None


@dataclass(frozen=True)
class Counted:
    """Seconds of the run that rank 0 has counted, from the submission to some moment."""

    seconds: Seconds
    now: TimeClass = TimeClass.TRAINING  # class of the seconds that follow


@dataclass(frozen=True)
class History:
    """Records of a run's time."""

    created: float
    attempts: Sequence[AttemptTimes]
    events: Sequence[Mapping[str, Any]]
    counted: Sequence[Counted] = ()
    trains: bool = True  # takes steps of the training loop
    has_groups: bool = True  # its processes are ranks
    spare_nodes: int = 0


@dataclass(frozen=True)
class Goodput:
    """Seconds and node-seconds of a run by class, without the classes that have none."""

    seconds: Seconds
    node_seconds: Seconds = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Share of useful seconds in those for which the run had nodes; None if it had none yet."""
        allocated = sum(seconds for name, seconds in self.seconds.items() if name not in UNALLOCATED)
        return sum(self.seconds.get(name, 0.0) for name in USEFUL) / allocated if allocated > 0 else None

    def plain(self) -> dict[str, Any]:
        """Return the content of `goodput` in `show --json`."""
        return {"share": self.share, "seconds": _plain(self.seconds), "node_seconds": _plain(self.node_seconds)}

    def metrics(self) -> dict[str, float]:
        """Return the metrics, cumulative since the submission."""
        values = {f"{SECTION}{name}{UNIT}": round(seconds, 4) for name, seconds in self.seconds.items() if seconds}
        return {**values, SHARE: round(self.share, 5)} if self.share is not None else values


def _plain(seconds: Seconds) -> dict[str, float]:
    return {name.value: round(each, 6) for name, each in seconds.items() if each}


def account(history: History, until: float) -> Goodput:
    """Return the seconds of a run by class, from its submission to `until`. They sum to that span.

    What rank 0 has counted is taken as it is. The time after it, and all of jobs without steps, follows from attempts and events.
    """
    newest = max(history.counted, key=_sum, default=Counted({}))
    counted_until = history.created + _sum(newest)
    until = max(until, counted_until)
    seconds: dict[TimeClass, float] = defaultdict(float, newest.seconds)
    node_seconds = _counted_node_seconds(history, newest)
    changes, nodes = _changes(history, newest, counted_until), _working_and_spare(history)
    times = sorted({t for t, _ in (*changes, *nodes) if counted_until < t < until} | {counted_until, until})
    for begin, end in pairwise(times):
        name = _value_at(changes, begin, TimeClass.QUEUED)
        seconds[name] += end - begin
        node_seconds[name] += (end - begin) * _value_at(nodes, begin, (0, 0))[0]
    spans = pairwise([*(change for change in nodes if change[0] < until), (until, (0, 0))])
    node_seconds[TimeClass.SPARE] = math.fsum((end - begin) * spare for (begin, (_, spare)), (end, _) in spans)
    return Goodput(*({n: each[n] for n in TimeClass if each.get(n, 0.0) > 0} for each in (seconds, node_seconds)))


def _sum(counted: Counted) -> float:
    return math.fsum(counted.seconds.values())


def _value_at(changes: Sequence[tuple[float, T]], when: float, before: T) -> T:
    """Return the value of the last change until `when`; the changes are in the order of time."""
    return next((value for begin, value in reversed(changes) if begin <= when), before)


# --- classes


@dataclass(frozen=True)
class _Fact:
    """A moment from which on the run has another class."""

    time: float
    name: TimeClass
    slow_since: float | None = None  # known afterwards: no step was made since then
    before: TimeClass | None = None  # class of the time since rank 0 last counted; None: it went on until this moment


def _changes(history: History, newest: Counted, counted_until: float) -> list[tuple[float, TimeClass]]:
    """Return the times at which the run's class changed, from what was recorded since rank 0 last counted."""
    facts = sorted((*_attempt_facts(history), *_event_facts(history)), key=lambda fact: fact.time)
    changes: list[tuple[float, TimeClass]] = []
    if newest.seconds:
        facts = [fact for fact in facts if fact.time > counted_until - SLACK_SECONDS]
        changes.append((counted_until, facts[0].before or newest.now if facts else newest.now))
    for fact in facts:
        if fact.slow_since is not None:
            since = max(fact.slow_since, counted_until)
            changes = [*(change for change in changes if change[0] < since), (since, TimeClass.SLOW)]
        changes.append((max(fact.time, counted_until), fact.name))
    return changes


def _attempt_facts(history: History) -> Iterator[_Fact]:
    for attempt, following in zip_longest(history.attempts, history.attempts[1:]):
        retried = attempt.opened_by == RETRY
        yield _Fact(attempt.opened, _RECOVERING if retried else TimeClass.QUEUED, before=_RECOVERING)
        if attempt.agents:
            starting = TimeClass.STARTING if history.has_groups else TimeClass.RUNNING
            name = _RECOVERING if retried and history.has_groups else starting
            yield _Fact(min(attempt.agents)[0], name, before=_RECOVERING)
        if (outcome := attempt.outcome) is not None and outcome.ended:
            again = _RECOVERING if following is not None and following.opened_by == RETRY else TimeClass.QUEUED
            left = TimeClass.STOPPED if outcome.exit_code in (EXIT_DONE, EXIT_REQUEUE) else _RECOVERING
            yield _Fact(outcome.ended, TimeClass.STOPPED if outcome.state.final else again, before=left)


def _event_facts(history: History) -> Iterator[_Fact]:
    formed = set[Any]()  # attempts that had a group
    for event in history.events:
        when, kind = float(event["time"]), event["event"]
        if kind == "group_formed":
            is_first = event.get("attempt") not in formed
            formed.add(event.get("attempt"))
            if not history.trains:
                yield _Fact(when, TimeClass.RUNNING)
            elif not is_first:
                yield _Fact(when, _RECOVERING, before=_RECOVERING)
        elif kind == "first_step":
            yield _Fact(when, TimeClass.TRAINING)
        elif kind in ("ranks_hung", "ranks_slow"):
            # `seconds` lacks those in which the agent did not run, or recorded the stacks
            since = float(event.get("since", when - float(event.get("seconds", 0.0))))
            yield _Fact(when, _RECOVERING if kind == "ranks_hung" else TimeClass.SLOW, slow_since=since)
        elif kind in LOSSES:
            yield _Fact(when, _RECOVERING, slow_since=when - SILENT_SECONDS if kind == "node_silent" else None)


# --- nodes


def _node_changes(history: History) -> list[tuple[float, int]]:
    """Return the times at which the number of the run's nodes changed."""
    moves: list[tuple[float, int, int | None]] = []  # time, +1 or -1, node; None: all
    for attempt in history.attempts:
        moves += [(when, 1, node) for when, node in attempt.agents]
        if attempt.outcome is not None and attempt.outcome.ended:
            moves.append((attempt.outcome.ended, -1, None))
    moves += [(float(e["time"]), -1, e.get("node")) for e in history.events if e["event"] in ("node_lost", "node_left")]
    nodes, changes = set[int | None](), []
    for when, sign, node in sorted(moves, key=lambda move: move[0]):
        nodes = nodes | {node} if sign > 0 else nodes - {node} if node is not None else set()
        changes.append((when, len(nodes)))
    return changes


def _working_and_spare(history: History) -> list[tuple[float, tuple[int, int]]]:
    """Return the times at which the nodes changed, with the numbers of those that work and those that are spare."""
    present = _node_changes(history)
    if not history.spare_nodes:
        return [(when, (count, 0)) for when, count in present]
    groups = [(float(e["time"]), int(e["nodes"])) for e in history.events if e["event"] == "group_formed" and "nodes" in e]
    times = sorted({when for when, _ in (*present, *groups)})
    counts = {when: _value_at(present, when, 0) for when in times}
    spare = {when: min(history.spare_nodes, max(0, n - _value_at(groups, when, n))) for when, n in counts.items()}
    return [(when, (counts[when] - spare[when], spare[when])) for when in times]


def nodes_at(history: History, when: float) -> int:
    """Return the number of nodes that the run had at a time, without spare ones."""
    return _value_at(_working_and_spare(history), when, (0, 0))[0]


def node_seconds_of(newest: Seconds, earlier: Goodput, nodes: int) -> dict[TimeClass, float]:
    """Return node-seconds from those at an earlier count, and the number of nodes since then."""
    since = {name: newest.get(name, 0.0) - earlier.seconds.get(name, 0.0) for name in TimeClass}
    return {name: earlier.node_seconds.get(name, 0.0) + since[name] * nodes for name in TimeClass}


def _counted_node_seconds(history: History, newest: Counted) -> dict[TimeClass, float]:
    """Return the node-seconds of what rank 0 has counted."""
    counts = [event for event in history.events if _is_count(event)]
    before = [event for event in counts if math.fsum(event["seconds"].values()) <= _sum(newest)]
    if not before:
        return defaultdict(float)
    earlier = Goodput(_by_class(before[-1]["seconds"]), _by_class(before[-1]["node_seconds"]))
    return defaultdict(float, node_seconds_of(newest.seconds, earlier, before[-1]["nodes"]))


# --- reading


def goodput_of(run: RunDir, *, trains: bool, until: float | None = None) -> Goodput:
    """Return the goodput of a run until its end, or until now if it goes on."""
    history = read_history(run, trains=trains)
    last = history.attempts[-1].outcome if history.attempts else None
    end = last.ended if last is not None and last.state.final else 0.0
    return account(history, until or end or time.time())


def read_history(run: RunDir, *, trains: bool, afresh: bool = False) -> History:
    """Read what a run's directory holds about its time. `afresh`: bypass the caches of a shared file system."""
    numbers = run.attempts()
    attempts = [_attempt_times(run, number) for number in numbers]
    opened, events = [attempt.opened for attempt in attempts], run.read_events(afresh=afresh)
    resources = (run.attempt_details(numbers[-1]) if numbers else {}).get("resources") or run.record.get("resources") or {}
    return History(
        created=min([float(run.record.get("created") or math.inf), *opened], default=time.time()),
        attempts=attempts,
        events=events,
        counted=list(_counted(run, events)) if trains else (),
        trains=trains,
        has_groups=run.record.get("engine") == Engine.RANKS,
        spare_nodes=resources.get("spare_nodes", 0),
    )


def _attempt_times(run: RunDir, number: int) -> AttemptTimes:
    details, agents = run.attempt_details(number), read_lines(run.attempt_dir(number) / AGENTS)
    starts = [(float(agent["started"]), int(agent["node"])) for agent in agents if {"started", "node"} <= agent.keys()]
    return AttemptTimes(
        number, float(details.get("created", 0.0)), str(details.get("opened_by", "")), starts, run.outcome(number)
    )


def _counted(run: RunDir, events: Sequence[Mapping[str, Any]]) -> Iterator[Counted]:
    """Yield the newest counts of rank 0: in the metrics, in the samples of its node, and in the event of its group."""
    for line in reversed(parse_lines(read_tail(run.metrics))[0]):
        names = {key.removeprefix(SECTION).removesuffix(UNIT): value for key, value in line.items() if key.startswith(SECTION)}
        if names.pop("share", None) is not None:
            yield Counted(_by_class(names))
            break
    for number in run.attempts()[-2:]:
        for path in sorted((run.attempt_dir(number) / NODES).glob("node-*.jsonl"))[:MOST_NODES]:
            samples = [line for line in parse_lines(read_tail(path, SAMPLES_TAIL_BYTES))[0] if "run_seconds" in line]
            if samples:
                yield Counted(_by_class(samples[-1]["run_seconds"]), TimeClass(samples[-1]["run_class"]))
    for event in events:
        if _is_count(event):
            yield Counted(_by_class(event["seconds"]), TimeClass(event["now"]))


def _is_count(event: Mapping[str, Any]) -> bool:
    """Return True for a complete event of rank 0's count; a damaged line may lack keys."""
    return event["event"] == COUNTED and {"seconds", "node_seconds", "nodes", "now"} <= event.keys()


def _by_class(values: Mapping[str, Any]) -> Seconds:
    return {name: float(values[name]) for name in TimeClass if isinstance(values.get(name), int | float)}
