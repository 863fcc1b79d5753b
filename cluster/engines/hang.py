"""Detection of hung ranks: agents watch heartbeats and activity of their ranks, vote on a hang, and record all stacks."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.engines.activity import RankSample, take_samples
from ropewalk.cluster.engines.stacks import Stack, take_stacks, write_stacks
from ropewalk.cluster.engines.watch import Watch
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.heartbeat import Beat
from ropewalk.cluster.run.names import STACKS

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, kw_only=True)
class Formation:
    """Identification of a group on one node, as used in events."""

    run: RunDir
    attempt: int
    node: int
    group: int


class GroupWatch:
    """Detects hangs of one formation of a group on one node."""

    def __init__(self, formation: Formation, watch: Watch, hangs: Hangs, progress: Callable[[], int]) -> None:
        self._formation, self.watch, self._hangs, self._progress = formation, watch, hangs, progress
        self._stopped: int | None = None
        self._leniency: Future[float] | None = None  # since the ranks are silent
        self._background = ThreadPoolExecutor(1, "watch")  # samples take time, and events and progress wait for a slow disk
        self._sampling: tuple[Future[dict[int, RankSample]], dict[int, Beat]] | None = None
        self._reported: dict[int, int] = {}  # number of the heartbeat after which a rank was reported as slow
        self._recorder: threading.Thread | None = None
        self._record_by = 0.0

    def look(self) -> dict[str, bool]:
        """Return this node's votes on a hang of the group. Call it periodically.

        A node whose agent is suspended does not vote, and a node with an active rank votes no: the other nodes then wait for it.
        A node without work is `spare`: the group goes on without it if it is lost.
        """
        self.watch.read()
        if self.watch.is_spare:
            return {"silent": True, "cause": False, "waiter": False, "spare": True}
        self._stopped = self.watch.stopped_rank()
        self._adjust_leniency()
        self._sample()
        self._report_slow()
        silent = self.watch.is_silent
        votes = {"cause": silent and self.watch.has_cause, "waiter": silent and self.watch.has_waiter}
        return {"silent": silent, **votes, "spare": False}

    @property
    def has_stopped_rank(self) -> bool:
        """True if a rank of this node is stopped by a signal."""
        return self._stopped is not None

    def _adjust_leniency(self) -> None:
        if self.watch.silent_seconds < LENIENCY_SECONDS:
            self.watch.leniency, self._leniency = 1.0, None
        elif self._hangs.count and self._leniency is None:
            self._leniency = self._background.submit(lambda: self._hangs.leniency(self._progress()))
        if self._leniency is not None and self._leniency.done():
            self.watch.leniency = self._leniency.result()

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

    def start_recording(self) -> None:
        """Start to record the stacks of this node's ranks."""
        self._record_by = time.monotonic() + RECORD_SECONDS
        self._recorder = threading.Thread(target=self._record, name="stacks", daemon=True)
        self._recorder.start()

    @property
    def is_recording(self) -> bool:
        return self._recorder is not None

    @property
    def is_recorded(self) -> bool:
        """True if the stacks are recorded, or after RECORD_SECONDS, which matters if the disk itself hangs."""
        return self._recorder is not None and (not self._recorder.is_alive() or time.monotonic() > self._record_by)

    def _record(self) -> None:
        if self._stopped is None:
            self._hangs.note(self._progress())
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
            "since": round(min(map(self.watch.beat_wall_time, silent)), 3),
        }


def _summarize(beat: Beat | None, stack: Stack) -> dict[str, str]:
    phase = beat.phase.label if beat is not None else "starting"
    return {"phase": phase, "where": stack.location(waits_for_data=phase == "data"), "state": stack.state}
