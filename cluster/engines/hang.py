"""Detection of hung ranks: agents watch heartbeats and activity of their ranks, agree on a hang, and record all stacks."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from torch.distributed import DistError

from ropewalk.cluster.engines.activity import RankSample, take_samples
from ropewalk.cluster.engines.stacks import Stack, take_stacks, write_stacks
from ropewalk.cluster.engines.watch import Watch
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.heartbeat import Beat
from ropewalk.cluster.run.names import STACKS

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # between two votes of a node whose ranks are late
SILENT, RECORDED, ENDED = "silent", "recorded", "ended"  # propositions: no rank works; stacks are recorded; all ranks ended
POLLING_NODES = 16  # with more nodes each polls less often
LENIENCY_SECONDS = 1.0  # of silence, after which earlier hangs are taken into account
RECORD_SECONDS = 1.5  # for taking and writing the stacks; then the ranks are killed in any case


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


class Counter(Protocol):
    """A store with shared counters: that of the group's formation."""

    def add(self, key: str, amount: int, /) -> int: ...


class Agreement:
    """Votes of the nodes of a group.

    A node whose agent is suspended does not vote, and a node with an active rank votes no: the other nodes then wait for it.
    A node without work votes yes in advance, so that the others go on when it is gone.
    """

    def __init__(self, store: Counter, nodes: int) -> None:
        self._store, self._nodes = store, nodes
        self._votes: set[str] = set()
        self._next_poll = 0.0

    def is_hung(self, *, silent: bool, has_cause: bool, has_waiter: bool) -> bool:
        """Return True if all nodes are silent, and some of them have the cause and a rank that waits for it."""
        parts = {"cause": silent and has_cause, "waiter": silent and has_waiter}
        for part, holds in parts.items():
            if holds != (part in self._votes):
                self._cast(part, holds)
        return self.vote(SILENT, silent) and all(self._cast(part, holds) > 0 for part, holds in parts.items())

    def vote(self, proposition: str, holds: bool) -> bool:
        """Cast this node's vote on a proposition, and return True if it holds on all nodes."""
        voted, now = proposition in self._votes, time.monotonic()
        if voted == holds and (not holds or now < self._next_poll):
            return False
        self._next_poll = now + self._poll_seconds
        return self._cast(proposition, holds) >= self._nodes and holds

    def abstain(self) -> None:
        """Vote yes on everything, once and for all: no rank of this node has work."""
        for proposition in {SILENT, RECORDED, ENDED} - self._votes:
            self._cast(proposition, True)

    def wait_for_others(self, seconds: float) -> None:
        """Wait until the ranks of all nodes have ended, or for so many seconds."""
        deadline = time.monotonic() + seconds
        while 0 < self._cast(ENDED, True) < self._nodes and time.monotonic() < deadline:
            time.sleep(self._poll_seconds)

    @property
    def _poll_seconds(self) -> float:
        return POLL_SECONDS * max(1.0, self._nodes / POLLING_NODES)

    def _cast(self, proposition: str, holds: bool) -> int:
        """Cast this node's vote, and return the number of nodes on which the proposition holds."""
        try:
            count = self._store.add(f"ropewalk/{proposition}", int(holds) - int(proposition in self._votes))
        except DistError as error:  # then this node is cut off, which the other nodes and the supervisor notice
            log.warning("the group's store cannot be reached, so hangs cannot be detected: %s", error)
            return 0
        (self._votes.add if holds else self._votes.discard)(proposition)
        return count


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
        self, formation: Formation, watch: Watch, agreement: Agreement, hangs: Hangs, progress: Callable[[], int]
    ) -> None:
        self._formation, self.watch, self._agreement, self._hangs, self._progress = formation, watch, agreement, hangs, progress
        self._stopped: int | None = None
        self._knows_leniency = False
        self._background = ThreadPoolExecutor(1, "watch")  # samples take time, and events wait for a slow disk
        self._sampling: tuple[Future[dict[int, RankSample]], dict[int, Beat]] | None = None
        self._reported: dict[int, int] = {}  # number of the heartbeat after which a rank was reported as slow

    def wait_for_others(self, seconds: float) -> None:
        """Wait until the ranks of all nodes have ended, or for so many seconds."""
        self._agreement.wait_for_others(seconds)

    def is_hung(self) -> bool:
        """Return True if a rank of this node is stopped, or the whole group hangs. Call it periodically."""
        self.watch.read()
        if self.watch.is_spare:
            self._agreement.abstain()
            return False
        self._stopped = self.watch.stopped_rank()
        if self._stopped is not None:
            return True
        self._adjust_leniency()
        self._sample()
        self._report_slow()
        watch = self.watch
        return self._agreement.is_hung(silent=watch.is_silent, has_cause=watch.has_cause, has_waiter=watch.has_waiter)

    def _adjust_leniency(self) -> None:
        if self.watch.silent_seconds < LENIENCY_SECONDS:
            self.watch.leniency, self._knows_leniency = 1.0, not self._hangs.count
        elif not self._knows_leniency:  # only once per silence: it reads a slow disk
            self.watch.leniency, self._knows_leniency = self._hangs.leniency(self._progress()), True

    def _sample(self) -> None:
        if self._sampling is not None and self._sampling[0].done():
            future, beats = self._sampling
            self._sampling = None
            try:
                samples = future.result()
            except (OSError, RuntimeError) as error:  # no memory, or no thread
                log.warning("the ranks cannot be observed, so they do not count as hung: %s", error)
                samples = {}
            self.watch.add(samples, beats)
        if self._sampling is None and self.watch.wants_samples:
            self._sampling = self._background.submit(take_samples, self.watch.ranks), self.watch.beats

    def _report_slow(self) -> None:
        beats, slow = self.watch.beats, self.watch.slow_ranks()
        if all(self._reported.get(rank) == beats[rank].number for rank in slow):
            return
        self._reported |= {rank: beats[rank].number for rank in slow}
        ranks = [
            {"rank": rank, **_summarize(beats[rank], self.watch.stack(rank)), "activity": activity.value}
            for rank, activity in slow.items()
        ]
        allowed_seconds = self.watch.leniency * min(beats[rank].allowed_seconds for rank in slow)
        fields = {**self._fields(slow), "ranks": ranks, "allowed_seconds": round(allowed_seconds, 1)}
        log.warning("no step for %.0f s, but ranks are active: %s", fields["seconds"], ranks)
        self._background.submit(self._record_slow, fields)

    def _record_slow(self, fields: dict[str, Any]) -> None:
        try:
            self._formation.run.event("ranks_slow", **fields)
        except OSError as error:
            log.warning("the event of slow ranks could not be recorded: %s", error)

    def record(self) -> None:
        """Record the stacks of this node's ranks; return when all nodes have done so, or after RECORD_SECONDS.

        The first node that kills its ranks ends the ranks of other nodes too. The limit matters if the disk itself hangs.
        """
        if self._stopped is None:
            self._hangs.note(self._progress())
        deadline = time.monotonic() + RECORD_SECONDS
        writer = threading.Thread(target=self._record, name="stacks", daemon=True)
        writer.start()
        writer.join(RECORD_SECONDS)
        while self._stopped is None and not self._agreement.vote(RECORDED, True) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _record(self) -> None:
        formation, beats = self._formation, self.watch.beats
        ranks = self.watch.ranks.items()
        stacks = take_stacks({rank: item.pid for rank, item in ranks}, {rank: item.dumps for rank, item in ranks})
        folder = formation.run.attempt_dir(formation.attempt) / STACKS / f"group-{formation.group:06d}"
        places = [{"rank": rank, **_summarize(beats.get(rank), stack)} for rank, stack in sorted(stacks.items())]
        fields = {**self._fields(beats), "ranks": places, "stacks": str(folder.relative_to(formation.run.path))}
        formation.run.event("ranks_hung", **fields)
        write_stacks(folder / f"node-{formation.node}.txt", stacks, {rank: beat.phase.label for rank, beat in beats.items()})

    def _fields(self, silent: Collection[int]) -> dict[str, Any]:
        formation, beats = self._formation, self.watch.beats
        return {
            "attempt": formation.attempt,
            "group": formation.group,
            "node": formation.node,
            "step": max(beats[rank].step for rank in silent),
            "seconds": round(max(self.watch.seconds_since_beat(rank) for rank in silent), 2),
        }


def _summarize(beat: Beat | None, stack: Stack) -> dict[str, str]:
    phase = beat.phase.label if beat is not None else "starting"
    return {"phase": phase, "where": stack.location(waits_for_data=phase == "data"), "state": stack.state}
