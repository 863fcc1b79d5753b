"""Relay of all runs to W&B from a machine with network access: `ropewalk sync --follow` on a login node."""

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
from ropewalk.jobs.runs.mirror.mirror import Mirror, is_complete, lease_of
from ropewalk.jobs.runs.mirror.server import unavailable_reason
from ropewalk.jobs.runs.notify.lease import Lease
from ropewalk.jobs.runs.notify.relay import NoticeRelay

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SLOW_SECONDS = 10.0  # between two checks of events, node samples and new runs
AWAY_SECONDS = 15.0  # between two attempts to reach a server that does not answer
STUCK_SECONDS = 120.0  # without progress at the server although there are more lines: wandb-core has given up
MOST_OPEN = 300  # open W&B runs
Say = Callable[[str], None]


@dataclass
class _Follower:
    """State of the relay for a run."""

    run: RunDir
    lease: Lease
    mirror: Mirror | None = None
    done: bool = False
    attempts_changed: int = 0  # modification time of the attempts when last read: a finished run may be resumed
    last_error: str = ""
    next_slow: float = 0.0
    next_check: float = field(default_factory=lambda: time.monotonic() + STUCK_SECONDS)
    at_server: int = -1


class Relay:
    """Sends the lines that the server lacks of every run below the roots, except runs whose own sidecar does that."""

    def __init__(self, roots: Sequence[Path], say: Say = print) -> None:
        self.roots, self._say = roots, say
        self._followers: dict[Path, _Follower] = {}
        self._next_scan = self._next_server = 0.0
        self._notices = NoticeRelay(say)
        self._away = ""

    def follow(self, stopped: Callable[[], bool]) -> None:
        """Send lines until `stopped` returns True, and then close all W&B runs."""
        pause_seconds = max(POLL_SECONDS, max((poll_seconds(root) for root in self.roots if root.is_dir()), default=0.0))
        try:
            while not stopped():
                self.look()
                time.sleep(pause_seconds)
        finally:
            for follower in self._followers.values():
                self._leave(follower)

    def look(self) -> int:
        """Send the new lines of every run once, and return their number."""
        self._notices.look(self.roots)
        if not self._server_answers():
            return 0
        self._scan()
        return sum(self._send_safely(follower) for follower in [*self._followers.values()] if not follower.done)

    @property
    def open_runs(self) -> int:
        """Number of open W&B runs."""
        return sum(follower.mirror is not None for follower in self._followers.values())

    def _server_answers(self) -> bool:
        now = time.monotonic()
        if now >= self._next_server:
            self._next_server = now + AWAY_SECONDS
            away = unavailable_reason()
            if away != self._away:
                self._say(f"nothing is sent to W&B: {away}" if away else "W&B answers again")
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
        for follower in self._followers.values():
            follower.done = follower.done and follower.attempts_changed == _changed(follower.run)

    def _send_safely(self, follower: _Follower) -> int:
        """Send the new lines of a run, and return their number. An error is reported once, and does not affect other runs."""
        now = time.monotonic()
        slow = now >= follower.next_slow
        if follower.mirror is None and not slow:
            return 0
        try:
            if slow:
                follower.next_slow = now + SLOW_SECONDS
            return self._send(follower, slow=slow)
        except Exception as error:  # any error of one run; the others go on
            if str(error) != follower.last_error:
                follower.last_error = str(error)
                self._say(f"{follower.run.id}: {error}")
            follower.next_slow = now + AWAY_SECONDS
            return 0

    def _send(self, follower: _Follower, *, slow: bool) -> int:
        if slow:
            follower.attempts_changed = _changed(follower.run)  # before the attempts are read
        attempts = follower.run.attempts() if slow else [0]
        if not attempts:
            return 0
        outcome = follower.run.last_outcome() if slow else None
        ending = outcome if outcome is not None and outcome.state.final else None
        if follower.mirror is None:
            if ending is not None and is_complete(follower.run):
                follower.done = True
                return 0
            if self.open_runs >= MOST_OPEN or not follower.lease.take():
                return 0
            follower.mirror = Mirror(follower.run, attempts[-1], offline=False)
        elif not follower.lease.renew():
            follower.mirror = None  # another process has taken over
            return 0
        num_sent = follower.mirror.pump(only_metrics=not slow)
        self._check_progress(follower)
        if ending is not None:
            self._end(follower, ending)
        return num_sent

    def _check_progress(self, follower: _Follower) -> None:
        """Reopen the W&B run if the server no longer receives lines: wandb-core gives up silently after some errors."""
        assert follower.mirror is not None
        if time.monotonic() < follower.next_check:
            return
        follower.next_check = time.monotonic() + STUCK_SECONDS
        num_received = follower.mirror.lines_at_server()
        if num_received == follower.at_server and num_received < follower.mirror.sent:
            lines = f"{num_received} of {follower.mirror.sent} lines"
            self._say(f"{follower.run.id}: W&B has {lines} and receives no more; reopening the W&B run")
            self._leave(follower)
        follower.at_server = num_received

    def _end(self, follower: _Follower, ending: Outcome) -> None:
        """Close the W&B run of an ended run, and check that the server has all lines. Raises BackendError."""
        mirror = follower.mirror
        assert mirror is not None
        follower.mirror = None
        mirror.finish(ending, ending.exit_code)
        num_received = mirror.lines_at_server()
        follower.lease.give_up()
        if num_received < mirror.sent:
            raise BackendError(f"W&B has {num_received} of {mirror.sent} lines; the rest is sent again")
        mirror.keep_complete(ending)
        follower.done = True
        self._say(f"{follower.run.id}: {mirror.sent} lines, {ending.state.value.lower()}")

    def _leave(self, follower: _Follower) -> None:
        mirror, follower.mirror = follower.mirror, None
        if mirror is not None:
            mirror.finish(None, 0)
            follower.lease.give_up()


def _changed(run: RunDir) -> int:
    """Return the time of the newest attempt in nanoseconds; 0 if the run was deleted."""
    try:
        return (run.path / "attempts").stat().st_mtime_ns
    except OSError:
        return 0
