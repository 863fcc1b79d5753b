"""Relay of notifications of all runs from a machine that has the user's file, such as a login node."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.notify.config import read_targets
from ropewalk.jobs.runs.notify.notifier import Notifier, wants_notice

LOOK_SECONDS = 10.0


class NoticeRelay:
    """Notifies of every run whose owner is this user, where the run's own sidecar does not."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._last_error, self._next_look = say, "", 0.0
        self._notifiers: dict[Path, Notifier | None] = {}  # None: nothing of the run is to be sent
        self._done: dict[Path, int] = {}  # attempts of an ended run of which all is sent

    def look(self, roots: Sequence[Path]) -> None:
        """Send what is due, once in some seconds. An error is reported once, and does not affect other runs."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            targets = read_targets()
        except RopewalkError as error:
            return self._report(error)
        for run in [run for root in roots for run in RunDir.all(root)] if targets else ():
            try:
                if run.path not in self._notifiers:
                    mine = run.path.stat().st_uid == os.getuid() and wants_notice(run)
                    self._notifiers[run.path] = Notifier(run, targets) if mine else None
                if (notifier := self._notifiers[run.path]) is not None:
                    self._look(notifier)
            except (OSError, RopewalkError) as error:
                self._report(error)
        return None

    def _look(self, notifier: Notifier) -> None:
        run = notifier.run
        attempts = len(run.attempts())
        if not attempts or self._done.get(run.path) == attempts:
            return
        outcome = run.last_outcome()
        ending = outcome if outcome is not None and outcome.state.final else None
        if notifier.look(ending) and ending is not None:
            self._done[run.path] = attempts
            notifier.close()

    def _report(self, error: Exception) -> None:
        if str(error) != self._last_error:
            self._last_error = str(error)
            self._say(str(error))
