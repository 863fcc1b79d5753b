"""Runs that lie on a volume of their cluster which this machine does not see: its copy of them is brought up to date."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import settle
from ropewalk.jobs.runs.show.view import view_of

log = logging.getLogger(__name__)


class Copy:
    """This machine's copy of a run; where the run lies here, it is the run itself, and always up to date."""

    def __init__(self, run: RunDir) -> None:
        self.run, self._said = run, ""
        self._backend: Backend | None = None
        cluster = str(run.record.get("cluster", "local"))
        if cluster != "local":
            try:
                self._backend = load_backend(cluster)
            except RopewalkError as error:  # a cluster of the profile file that is not there any more
                self._tell(str(error))

    @property
    def is_one(self) -> bool:
        """Whether the run itself lies elsewhere."""
        return self._backend is not None and not self._backend.shares_files

    def freshen(self) -> None:
        """Bring the copy up to date; where that fails, say so once and continue with what there is."""
        if self._backend is None:
            return
        try:
            self._backend.sync(self.run, beside=self.children())
        except RopewalkError as error:
            self._tell(str(error))
        else:
            self._said = ""

    def children(self) -> list[str]:
        """The ids of the runs that this one has started, as far as this machine knows of them."""
        return [child.id for child in view_of(self.run).children()]

    def _tell(self, error: str) -> None:
        if error != self._said:
            log.warning("%s; what this machine has of %s may be old", error, self.run.id)
        self._said = error


def freshen(run: RunDir) -> RunDir:
    """The run; where this machine has a copy of it, that is brought up to date first, with those of its children."""
    copy = Copy(run)
    known = copy.children()
    copy.freshen()
    if copy.children() != known:
        copy.freshen()
    if copy.is_one:
        settle(run)
    return run


def export_elsewhere(run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> bool:
    """Export a checkpoint on the cluster that it lies on, if this machine does not see it; returns whether that was done.

    `options` are further words of `python -m ropewalk.jobs.models.cards.export`.
    """
    return load_backend(str(run.record.get("cluster", "local"))).export(run, directory, step, options)


def write_there(run: RunDir, name: str) -> bool:
    """Copy a small file of the run to where the run lies, if this machine has a copy only; returns whether that was needed.

    Raises BackendError.
    """
    backend = load_backend(str(run.record.get("cluster", "local")))
    if backend.shares_files:
        return False
    backend.sync(run, write={name: (run.path / name).read_text()})
    return True
