"""Fencing: only the newest group of ranks of the newest attempt may write into a run."""

from pathlib import Path

from ropewalk.cluster.errors import StaleAttemptError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.names import GROUPS, SUCCESSOR
from ropewalk.cluster.run.succession import mark_succeeded, read_mark_afresh


class Fence:
    """Right of a group of ranks to write into a run.

    A new group forms within an attempt whenever a rank is lost or a node joins. A claim marks all older groups and attempts
    as succeeded. A check opens two marks, which works on every file system regardless of caches, and needs no lock.
    """

    def __init__(self, run: RunDir, attempt: int, group: int) -> None:
        self.run, self.attempt, self.group = run, attempt, group

    def claim(self) -> None:
        """Exclude all older groups. Raises StaleAttemptError if there is a newer one already."""
        self.check()
        mark_succeeded(self._attempt_mark, self.attempt, first=1)
        mark_succeeded(self._group_mark, self.group, first=0)  # engines without groups use group 0

    def check(self) -> None:
        """Raise StaleAttemptError if this group has a successor."""
        if newer := read_mark_afresh(self._attempt_mark(self.attempt)):
            raise StaleAttemptError(f"{self.run.id}: attempt {self.attempt} was succeeded by {newer}; not writing")
        if newer := read_mark_afresh(self._group_mark(self.group)):
            raise StaleAttemptError(
                f"{self.run.id}: group {self.group} of attempt {self.attempt} was succeeded by {newer}; not writing"
            )

    def has_successor(self) -> bool:
        try:
            self.check()
        except StaleAttemptError:
            return True
        return False

    def _attempt_mark(self, attempt: int) -> Path:
        return self.run.attempt_dir(attempt) / SUCCESSOR

    def _group_mark(self, group: int) -> Path:
        return self.run.attempt_dir(self.attempt) / GROUPS / f"{group:06d}"
