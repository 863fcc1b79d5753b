"""Fencing: who may write into a run."""

from pathlib import Path

from ropewalk.cluster.errors import StaleAttemptError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.names import GROUPS
from ropewalk.cluster.run.succession import SUCCESSOR, read_mark_afresh, succeed


class Fence:
    """The right to write into a run: held by the newest group of ranks of the newest attempt, and no other.

    A group is one formation of ranks inside an attempt (a rank was lost, a node joined). A claim writes a mark into the files
    of all older groups and attempts; a check opens two files by name, which shows the mark on every file system, however old
    the caches of this machine are. Nothing needs a lock.
    """

    def __init__(self, run: RunDir, attempt: int, group: int) -> None:
        self.run, self.attempt, self.group = run, attempt, group

    def claim(self) -> None:
        """Take over from every older group. Raises StaleAttemptError if there is a newer one already."""
        self.check()
        succeed(self._attempt_mark, self.attempt, first=1)
        succeed(self._group_mark, self.group, first=0)  # what has no groups is group 0

    def check(self) -> None:
        """Raise StaleAttemptError if this group has a successor."""
        if newer := read_mark_afresh(self._attempt_mark(self.attempt)):
            raise StaleAttemptError(f"{self.run.id}: attempt {self.attempt} was succeeded by {newer}; not writing")
        if newer := read_mark_afresh(self._group_mark(self.group)):
            raise StaleAttemptError(
                f"{self.run.id}: group {self.group} of attempt {self.attempt} was succeeded by {newer}; not writing"
            )

    def has_successor(self) -> bool:
        """Whether the group has a successor."""
        try:
            self.check()
        except StaleAttemptError:
            return True
        return False

    def _attempt_mark(self, attempt: int) -> Path:
        return self.run.attempt_dir(attempt) / SUCCESSOR

    def _group_mark(self, group: int) -> Path:
        return self.run.attempt_dir(self.attempt) / GROUPS / f"{group:06d}"
