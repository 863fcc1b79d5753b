"""Detect ranks that hang: each agent watches its own ranks, all agents agree, stacks are taken, and the group ends."""

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

LOOK_SECONDS = 0.05  # between two looks at the store, of nodes whose ranks stand still
LOOKS_AT_ONCE = 16  # nodes that may look so often; of more each looks less often
LONGEST_LOOK_SECONDS = 0.25  # between two looks at the ranks: what is longer, the agent itself stood still
LOOKS = 2  # in a row that must find the same
RECORD_SECONDS = 1.5  # what taking and writing the stacks may take before the ranks are ended all the same


class Counter(Protocol):
    """A store by whose counters the agents agree: that of the group's formation."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to the counter `key`, and return the sum."""
        ...


@dataclass
class Hangs:
    """Counts how often the group hung since the last progress.

    Each hang doubles the time that a phase may take, so that a run whose steps really take that long now and then goes on.
    """

    count: int = 0
    progress: int = -1

    def leniency(self, progress: int) -> float:
        """Return the factor by which a phase may take longer than its rank says."""
        return 2.0**self.count if progress <= self.progress else 1.0

    def note(self, progress: int) -> None:
        """Count one more hang."""
        self.count = self.count + 1 if progress <= self.progress else 1
        self.progress = progress


class Watch:
    """The heartbeats of one node's ranks. Time during which this process itself stood still does not count."""

    def __init__(self, files: Mapping[int, Path], group: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._files, self._group, self._clock = files, group, clock
        self.beats: dict[int, Beat] = {}  # of the ranks that have beaten
        self._since: dict[int, float] = {}  # when each beat was first seen, by the time awake
        self._awake, self._looked_at = 0.0, clock()

    def look(self) -> None:
        """Read the ranks' heartbeats."""
        now = self._clock()
        self._awake += min(now - self._looked_at, LONGEST_LOOK_SECONDS)
        self._looked_at = now
        for rank, path in self._files.items():
            beat = read_beat(path)
            if beat is None or beat.group != self._group:
                continue
            if rank not in self.beats or self.beats[rank].number != beat.number:
                self._since[rank] = self._awake
            self.beats[rank] = beat

    def stood(self, rank: int) -> float:
        """Return the seconds since the rank's last heartbeat."""
        return self._awake - self._since[rank]

    def late(self, leniency: float = 1.0) -> bool:
        """Return whether every rank that beats is in its phase for too long: a single one may wait for the others."""
        return bool(self.beats) and all(self.stood(r) > leniency * b.allowed_seconds for r, b in self.beats.items())


class Agreement:
    """A vote of all nodes of a group, which holds when every node says yes.

    A node whose agent stands still does not vote. A node with a rank in a phase that may take long votes no: the other nodes
    wait for its ranks.
    """

    def __init__(self, store: Counter, nodes: int) -> None:
        self._store, self._nodes = store, nodes
        self._votes: set[str] = set()
        self._next_look = 0.0

    def vote(self, question: str, holds: bool) -> bool:
        """Vote on a question, whether it holds on this node; returns whether it holds on all nodes."""
        voted, now = question in self._votes, time.monotonic()
        if voted == holds and (not holds or now < self._next_look):
            return False
        self._next_look = now + LOOK_SECONDS * max(1.0, self._nodes / LOOKS_AT_ONCE)
        try:
            count = self._store.add(f"ropewalk/{question}", int(holds) - int(voted))
        except DistError as error:  # a node that has lost the store is lost itself, which others find out
            log.warning("the store of the group is lost, so hangs cannot be agreed on: %s", error)
            return False
        (self._votes.add if holds else self._votes.discard)(question)
        return holds and count >= self._nodes


@dataclass(frozen=True, kw_only=True)
class Formation:
    """The formation of ranks that is watched, as events name it."""

    run: RunDir
    attempt: int
    node: int
    group: int


class GroupWatch:
    """Watches one formation of a group from one node."""

    def __init__(
        self, place: Formation, files: Mapping[int, Path], agreement: Agreement, hangs: Hangs, progress: Callable[[], int]
    ) -> None:
        self._place, self._agreement, self._hangs, self._progress = place, agreement, hangs, progress
        self.watch = Watch(files, place.group)
        self._looks, self._leniency = 0, 0.0

    def hung(self) -> bool:
        """Return whether the whole group hangs; call it again and again."""
        self.watch.look()
        if not self.watch.late():
            self._looks, self._leniency = 0, 0.0
        else:
            self._leniency = self._leniency or self._hangs.leniency(self._progress())  # read once: it lies on a slow disk
            self._looks = self._looks + 1 if self.watch.late(self._leniency) else 0
        return self._agreement.vote("hung", self._looks >= LOOKS)

    def record(self, pids: Mapping[int, int], spare: Mapping[int, Path]) -> None:
        """Take and write down the stacks of this node's ranks; returns when all nodes have done so, or after RECORD_SECONDS.

        The first node that ends its ranks ends those of others too, and a disk that stands still may be why they hang.
        """
        self._hangs.note(self._progress())
        deadline = time.monotonic() + RECORD_SECONDS
        writer = threading.Thread(target=self._record, args=(pids, spare), name="stacks", daemon=True)
        writer.start()
        writer.join(RECORD_SECONDS)
        while not self._agreement.vote("recorded", True) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _record(self, pids: Mapping[int, int], spare: Mapping[int, Path]) -> None:
        place, beats = self._place, self.watch.beats
        stacks = take_stacks(pids, spare)
        folder = place.run.attempt_dir(place.attempt) / STACKS / f"group-{place.group:06d}"
        ranks = [{"rank": rank, **_told(beats.get(rank), stack)} for rank, stack in sorted(stacks.items())]
        place.run.event(
            "ranks_hung",
            attempt=place.attempt,
            group=place.group,
            node=place.node,
            step=max(beat.step for beat in beats.values()),
            seconds=round(max(self.watch.stood(rank) for rank in beats), 2),
            ranks=ranks,
            stacks=str(folder.relative_to(place.run.path)),
        )
        write_stacks(folder, stacks, {rank: beat.phase.label for rank, beat in beats.items()})


def _told(beat: Beat | None, stack: Stack) -> dict[str, str]:
    phase = beat.phase.label if beat is not None else "starting"
    return {"phase": phase, "where": stack.place(waits_for_data=phase == "data"), "state": stack.state}
