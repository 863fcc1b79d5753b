"""Fencing: who may write into a run."""

import os

from cluster.errors import StaleAttemptError
from cluster.run_dir import RunDir


class Fence:
    """The right to write into a run: held by the newest group of ranks of the newest attempt, and no other.

    A group is one formation of ranks inside an attempt (a rank was lost, a node joined). Claiming is the
    creation of a file whose name only grows; checking is one directory listing; nothing needs a lock.
    """

    def __init__(self, run: RunDir, attempt: int, group: int) -> None:
        self.run, self.attempt, self.group = run, attempt, group

    def claim(self) -> None:
        """Take over from every older group. Raises StaleAttemptError if there is a newer one already."""
        self.check()
        (self.run.attempt_dir(self.attempt) / "groups" / f"{self.group:06d}").touch()

    def check(self) -> None:
        """Raise StaleAttemptError if this group has a successor."""
        attempts = self.run.attempts()
        if attempts and attempts[-1] > self.attempt:
            raise StaleAttemptError(f"{self.run.id}: attempt {self.attempt} was succeeded by {attempts[-1]}; not writing")
        newest = max((int(n) for n in os.listdir(self.run.attempt_dir(self.attempt) / "groups")), default=0)
        if newest > self.group:
            raise StaleAttemptError(
                f"{self.run.id}: group {self.group} of attempt {self.attempt} was succeeded by {newest}; not writing"
            )
