"""All runs of a runs' root sent to W&B live, from a machine that has a network: `ropewalk sync --follow` on the login node."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.spec import Outcome
from ropewalk.jobs.runs.mirror.lease import Lease
from ropewalk.jobs.runs.mirror.mirror import Mirror, is_complete, lease_of
from ropewalk.jobs.runs.mirror.server import why_away

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
SLOW_SECONDS = 10.0  # between two looks at events, nodes, and which runs there are
AWAY_SECONDS = 15.0  # between two looks for a server that does not answer
STUCK_SECONDS = 120.0  # the server has taken nothing for so long though there is more: wandb-core has given up
MOST_OPEN = 300  # W&B runs at a time
Say = Callable[[str], None]


@dataclass
class _Follower:
    """A run that the relay knows."""

    run: RunDir
    lease: Lease
    mirror: Mirror | None = None
    done: bool = False
    attempts_changed: int = 0  # as it was when they were looked at: a run that is done with may be resumed
    said: str = ""
    next_slow: float = 0.0
    next_check: float = field(default_factory=lambda: time.monotonic() + STUCK_SECONDS)
    at_server: int = -1


class Relay:
    """Sends what the server lacks of every run below the roots; what a run's own sidecar sends is left to it."""

    def __init__(self, roots: Sequence[Path], say: Say = print) -> None:
        self.roots, self._say = roots, say
        self._followers: dict[Path, _Follower] = {}
        self._next_scan = self._next_server = 0.0
        self._away = ""

    def follow(self, stopped: Callable[[], bool]) -> None:
        """Send until `stopped`; then close what is open."""
        pause_seconds = max(LOOK_SECONDS, max((poll_seconds(root) for root in self.roots if root.is_dir()), default=0.0))
        try:
            while not stopped():
                self.look()
                time.sleep(pause_seconds)
        finally:
            for one in self._followers.values():
                self._leave(one)

    def look(self) -> int:
        """Look at every run once; returns the number of lines that were handed over."""
        if not self._server_answers():
            return 0
        self._scan()
        return sum(self._look_at(one) for one in [*self._followers.values()] if not one.done)

    @property
    def open_runs(self) -> int:
        """How many W&B runs are open."""
        return sum(one.mirror is not None for one in self._followers.values())

    def _server_answers(self) -> bool:
        now = time.monotonic()
        if now >= self._next_server:
            self._next_server = now + AWAY_SECONDS
            away = why_away()
            if away != self._away:
                self._say(away or "W&B answers again")
                self._away = away
        return not self._away

    def _scan(self) -> None:
        now = time.monotonic()
        if now < self._next_scan:
            return
        self._next_scan = now + SLOW_SECONDS
        for root in self.roots:
            for run in RunDir.all(root):
                if run.path not in self._followers and run.path.stat().st_uid == os.getuid():
                    self._followers[run.path] = _Follower(run, lease_of(run))
        for one in self._followers.values():
            one.done = one.done and one.attempts_changed == _changed(one.run)

    def _look_at(self, one: _Follower) -> int:
        """Send what is new of a run. One that cannot be read is said once, and stops no other."""
        now = time.monotonic()
        slow = now >= one.next_slow
        if one.mirror is None and not slow:
            return 0
        try:
            if slow:
                one.next_slow = now + SLOW_SECONDS
            return self._send(one, slow=slow)
        except Exception as error:  # whatever is wrong with one run, the others go on
            if str(error) != one.said:
                one.said = str(error)
                self._say(f"{one.run.id}: {error}")
            one.next_slow = now + AWAY_SECONDS
            return 0

    def _send(self, one: _Follower, *, slow: bool) -> int:
        if slow:
            one.attempts_changed = _changed(one.run)  # before they are looked at
        attempts = one.run.attempts() if slow else [0]
        if not attempts:
            return 0
        outcome = one.run.last_outcome() if slow else None
        ending = outcome if outcome is not None and outcome.state.final else None
        if one.mirror is None:
            if ending is not None and is_complete(one.run):
                one.done = True
                return 0
            if self.open_runs >= MOST_OPEN or not one.lease.take():
                return 0
            one.mirror = Mirror(one.run, attempts[-1], offline=False)
        elif not one.lease.renew():
            one.mirror = None  # somebody else sends it now
            return 0
        sent = one.mirror.pump(only_metrics=not slow)
        self._check(one)
        if ending is not None:
            self._end(one, ending)
        return sent

    def _check(self, one: _Follower) -> None:
        """Open a run again of which the server takes nothing any more: wandb-core gives up after some errors, without a word."""
        assert one.mirror is not None
        if time.monotonic() < one.next_check:
            return
        one.next_check = time.monotonic() + STUCK_SECONDS
        there = one.mirror.lines_at_server()
        if there == one.at_server and there < one.mirror.sent:
            self._say(f"{one.run.id}: W&B has {there} of {one.mirror.sent} lines and takes no more; opening it again")
            self._leave(one)
        one.at_server = there

    def _end(self, one: _Follower, ending: Outcome) -> None:
        """Close the W&B run of a run that is over, and look whether the server has all of it."""
        mirror = one.mirror
        assert mirror is not None
        one.mirror = None
        mirror.finish(ending, ending.exit_code)
        there = mirror.lines_at_server()
        one.lease.give_up()
        if there < mirror.sent:
            raise BackendError(f"W&B has {there} of {mirror.sent} lines; the rest is sent again")
        mirror.keep_complete(ending)
        one.done = True
        self._say(f"{one.run.id}: {mirror.sent} lines, {ending.state.value.lower()}")

    def _leave(self, one: _Follower) -> None:
        mirror, one.mirror = one.mirror, None
        if mirror is not None:
            mirror.finish(None, 0)
            one.lease.give_up()


def _changed(run: RunDir) -> int:
    """When the run last got another attempt, in nanoseconds; 0 for one that is gone."""
    try:
        return (run.path / "attempts").stat().st_mtime_ns
    except OSError:
        return 0
