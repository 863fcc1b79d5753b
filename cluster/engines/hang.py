"""Detection of hung ranks: agents watch their ranks' heartbeats, agree that all ranks hang, and record their stacks."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch.distributed import DistError

from ropewalk.cluster.engines.stacks import Stack, take_stacks, write_stacks
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.heartbeat import Beat, read_beat
from ropewalk.cluster.run.names import STACKS

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # between two votes of a node whose ranks are late
POLLING_NODES = 16  # with more nodes each polls less often
LONGEST_PAUSE_SECONDS = 0.25  # between two reads of heartbeats; in the rest of a longer pause this agent was suspended
CONFIRMATIONS = 2  # consecutive checks that must find all ranks late
RECORD_SECONDS = 1.5  # for taking and writing the stacks; then the ranks are killed in any case


class Counter(Protocol):
    """A store with shared counters: that of the group's formation."""

    def add(self, key: str, amount: int, /) -> int: ...


@dataclass
class Hangs:
    """Number of hangs since the last progress. Each doubles all time limits, so that a run with rare very long steps goes on."""

    count: int = 0
    progress: int = -1  # step of the newest checkpoint at the last hang

    def leniency(self, progress: int) -> float:
        """Return the factor by which the time limits are extended."""
        return 2.0**self.count if progress <= self.progress else 1.0

    def note(self, progress: int) -> None:
        self.count = self.count + 1 if progress <= self.progress else 1
        self.progress = progress


class Watch:
    """Heartbeats of one node's ranks. Time in which this process was suspended does not count."""

    def __init__(self, files: Mapping[int, Path], group: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._files, self._group, self._clock = files, group, clock
        self.beats: dict[int, Beat] = {}  # newest heartbeat by rank
        self._since: dict[int, float] = {}  # value of `_awake` when each heartbeat was first read
        self._awake, self._read_at = 0.0, clock()  # seconds in which this process was running

    def read(self) -> None:
        now = self._clock()
        self._awake += min(now - self._read_at, LONGEST_PAUSE_SECONDS)
        self._read_at = now
        for rank, path in self._files.items():
            beat = read_beat(path)
            if beat is None or beat.group != self._group:
                continue
            if rank not in self.beats or self.beats[rank].number != beat.number:
                self._since[rank] = self._awake
            self.beats[rank] = beat

    def seconds_since_beat(self, rank: int) -> float:
        return self._awake - self._since[rank]

    def all_late(self, leniency: float = 1.0) -> bool:
        """Return True if every rank with a heartbeat exceeds the limit of its phase: a single late rank may wait for others."""
        return bool(self.beats) and all(self.seconds_since_beat(r) > leniency * b.allowed_seconds for r, b in self.beats.items())


class Agreement:
    """Unanimous votes of the nodes of a group.

    A node whose agent is suspended does not vote, and a node with a rank in a long phase votes no: the other nodes then wait
    for its ranks.
    """

    def __init__(self, store: Counter, nodes: int) -> None:
        self._store, self._nodes = store, nodes
        self._votes: set[str] = set()
        self._next_poll = 0.0

    def vote(self, proposition: str, holds: bool) -> bool:
        """Cast this node's vote on a proposition, and return True if it holds on all nodes."""
        voted, now = proposition in self._votes, time.monotonic()
        if voted == holds and (not holds or now < self._next_poll):
            return False
        self._next_poll = now + POLL_SECONDS * max(1.0, self._nodes / POLLING_NODES)
        try:
            count = self._store.add(f"ropewalk/{proposition}", int(holds) - int(voted))
        except DistError as error:  # then this node is cut off, which the other nodes and the supervisor notice
            log.warning("the group's store cannot be reached, so hangs cannot be detected: %s", error)
            return False
        (self._votes.add if holds else self._votes.discard)(proposition)
        return holds and count >= self._nodes


@dataclass(frozen=True, kw_only=True)
class Formation:
    """Identification of a group on one node, as used in events."""

    run: RunDir
    attempt: int
    node: int
    group: int


class GroupWatch:
    """Detects hangs of one formation of a group on one node."""

    def __init__(
        self, formation: Formation, files: Mapping[int, Path], agreement: Agreement, hangs: Hangs, progress: Callable[[], int]
    ) -> None:
        self._formation, self._agreement, self._hangs, self._progress = formation, agreement, hangs, progress
        self.watch = Watch(files, formation.group)
        self._confirmations, self._leniency = 0, 0.0

    def is_hung(self) -> bool:
        """Return True if the whole group hangs. Call it periodically."""
        self.watch.read()
        if not self.watch.all_late():
            self._confirmations, self._leniency = 0, 0.0
        else:
            self._leniency = self._leniency or self._hangs.leniency(self._progress())  # only once: it reads a slow disk
            self._confirmations = self._confirmations + 1 if self.watch.all_late(self._leniency) else 0
        return self._agreement.vote("hung", self._confirmations >= CONFIRMATIONS)

    def record(self, pids: Mapping[int, int], spare: Mapping[int, Path]) -> None:
        """Record the stacks of this node's ranks; return when all nodes have done so, or after RECORD_SECONDS.

        The first node that kills its ranks ends the ranks of other nodes too. The limit matters if the disk itself hangs.
        """
        self._hangs.note(self._progress())
        deadline = time.monotonic() + RECORD_SECONDS
        writer = threading.Thread(target=self._record, args=(pids, spare), name="stacks", daemon=True)
        writer.start()
        writer.join(RECORD_SECONDS)
        while not self._agreement.vote("recorded", True) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _record(self, pids: Mapping[int, int], spare: Mapping[int, Path]) -> None:
        formation, beats = self._formation, self.watch.beats
        stacks = take_stacks(pids, spare)
        folder = formation.run.attempt_dir(formation.attempt) / STACKS / f"group-{formation.group:06d}"
        ranks = [{"rank": rank, **_summarize(beats.get(rank), stack)} for rank, stack in sorted(stacks.items())]
        formation.run.event(
            "ranks_hung",
            attempt=formation.attempt,
            group=formation.group,
            node=formation.node,
            step=max(beat.step for beat in beats.values()),
            seconds=round(max(self.watch.seconds_since_beat(rank) for rank in beats), 2),
            ranks=ranks,
            stacks=str(folder.relative_to(formation.run.path)),
        )
        write_stacks(folder, stacks, {rank: beat.phase.label for rank, beat in beats.items()})


def _summarize(beat: Beat | None, stack: Stack) -> dict[str, str]:
    phase = beat.phase.label if beat is not None else "starting"
    return {"phase": phase, "where": stack.location(waits_for_data=phase == "data"), "state": stack.state}
