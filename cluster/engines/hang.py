"""Ranks that hang: each agent judges its own, all agree, the stacks are taken, and the group ends."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch.distributed import DistError

from cluster.engines.heartbeat import Beat, read_beat
from cluster.engines.stacks import Stack, take_stacks, write_stacks
from cluster.run.directory import RunDir
from cluster.run.names import STACKS

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # between two looks at the store, of nodes whose ranks stand still
LOOKS_AT_ONCE = 16  # nodes that may look so often; of more each looks less often
LONGEST_LOOK_SECONDS = 0.25  # between two looks at the ranks: what is longer, the agent itself stood still
LOOKS = 2  # in a row that must find the same
RECORD_SECONDS = 1.5  # what taking and writing the stacks may take before the ranks are ended all the same


class Counter(Protocol):
    """What the agents agree by: a key's number in the store of the group's formation."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to it; the sum."""
        ...


@dataclass
class Hangs:
    """How often the group hung since the last progress. Each time doubles what its ranks may take: a run whose steps
    really take so long, now and then, goes on in the end.
    """

    count: int = 0
    progress: int = -1

    def leniency(self, progress: int) -> float:
        """By how much longer than told a phase may take."""
        return 2.0**self.count if progress <= self.progress else 1.0

    def note(self, progress: int) -> None:
        """The group hangs once more."""
        self.count = self.count + 1 if progress <= self.progress else 1
        self.progress = progress


class Watch:
    """The ranks of one node, by what they tell. Only time counts in which this process itself was running."""

    def __init__(self, files: Mapping[int, Path], group: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._files, self._group, self._clock = files, group, clock
        self.beats: dict[int, Beat] = {}  # of the ranks that have told anything
        self._since: dict[int, float] = {}  # when each beat was first seen, by the time awake
        self._awake, self._looked_at = 0.0, clock()

    def look(self) -> None:
        """Read what the ranks tell."""
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
        """Seconds since the rank's last word."""
        return self._awake - self._since[rank]

    def late(self, leniency: float = 1.0) -> bool:
        """Every rank that tells anything is in a phase for longer than that may take: one alone may wait for the others."""
        return bool(self.beats) and all(self.stood(r) > leniency * b.allowed_seconds for r, b in self.beats.items())


class Agreement:
    """All nodes of a group say the same. One whose agent stands still says nothing, and one whose rank is in a phase that takes
    long says no: its ranks are what the others wait for.
    """

    def __init__(self, store: Counter, nodes: int) -> None:
        self._store, self._nodes = store, nodes
        self._said: set[str] = set()
        self._next_look = 0.0

    def say(self, word: str, holds: bool) -> bool:
        """Tell the others whether something holds here; whether it holds everywhere."""
        said, now = word in self._said, time.monotonic()
        if said == holds and (not holds or now < self._next_look):
            return False
        self._next_look = now + LOOK_SECONDS * max(1.0, self._nodes / LOOKS_AT_ONCE)
        try:
            count = self._store.add(f"ropewalk/{word}", int(holds) - int(said))
        except DistError as error:  # whoever has lost the store is lost, and found elsewhere
            log.warning("cannot agree with the other nodes: %s", error)
            return False
        (self._said.add if holds else self._said.discard)(word)
        return holds and count >= self._nodes


@dataclass(frozen=True, kw_only=True)
class Formation:
    """Whose ranks are watched: what a record of them says."""

    run: RunDir
    attempt: int
    node: int
    group: int


class GroupWatch:
    """One formation of the group, seen from one node."""

    def __init__(
        self, place: Formation, files: Mapping[int, Path], agreement: Agreement, hangs: Hangs, progress: Callable[[], int]
    ) -> None:
        self._place, self._agreement, self._hangs, self._progress = place, agreement, hangs, progress
        self.watch = Watch(files, place.group)
        self._looks, self._leniency = 0, 0.0

    def hung(self) -> bool:
        """The whole group hangs. To be asked again and again."""
        self.watch.look()
        if not self.watch.late():
            self._looks, self._leniency = 0, 0.0
        else:
            self._leniency = self._leniency or self._hangs.leniency(self._progress())  # read once: it lies on a slow disk
            self._looks = self._looks + 1 if self.watch.late(self._leniency) else 0
        return self._agreement.say("hung", self._looks >= LOOKS)

    def record(self, pids: Mapping[int, int], spare: Mapping[int, Path]) -> None:
        """Take the stacks of this node's ranks and write them down. Returns when all nodes have, and soon in any case: the
        first that ends its ranks ends those of others too, and a disk that stands still may be why they hang.
        """
        self._hangs.note(self._progress())
        deadline = time.monotonic() + RECORD_SECONDS
        writer = threading.Thread(target=self._record, args=(pids, spare), name="stacks", daemon=True)
        writer.start()
        writer.join(RECORD_SECONDS)
        while not self._agreement.say("recorded", True) and time.monotonic() < deadline:
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
        write_stacks(folder, stacks, {rank: beat.phase.words for rank, beat in beats.items()})


def _told(beat: Beat | None, stack: Stack) -> dict[str, str]:
    phase = beat.phase.words if beat is not None else "starting"
    return {"phase": phase, "where": stack.place(waits_for_data=phase == "data"), "state": stack.state}
