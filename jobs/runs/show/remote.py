"""Synchronization of this machine's copies of runs that are stored on a volume of their cluster."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import backend_of, load_backend
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import settle
from ropewalk.jobs.runs.show.view import view_of

log = logging.getLogger(__name__)


class Copy:
    """This machine's copy of a run. If the run is accessible here, it is the run itself and always up to date."""

    def __init__(self, run: RunDir) -> None:
        self.run, self._last_error = run, ""
        self._backend: Backend | None = None
        cluster = str(run.record.get("cluster", "local"))
        if cluster != "local":
            try:
                self._backend = load_backend(cluster)
            except RopewalkError as error:  # the cluster is no longer in the profile file
                self._warn(str(error))

    @property
    def is_remote(self) -> bool:
        """True if the run is stored on another machine."""
        return self._backend is not None and not self._backend.shares_files

    def freshen(self) -> None:
        """Update the copy; log a failure once, and continue with the existing copy."""
        if self._backend is None:
            return
        try:
            self._backend.sync(self.run, beside=self.children())
        except RopewalkError as error:
            self._warn(str(error))
        else:
            self._last_error = ""

    def children(self) -> list[str]:
        """Return the ids of the run's children that are known to this machine."""
        return [child.id for child in view_of(self.run).children()]

    def _warn(self, error: str) -> None:
        if error != self._last_error:
            log.warning("%s; this machine's copy of %s may be outdated", error, self.run.id)
        self._last_error = error


def freshen(run: RunDir) -> RunDir:
    """Update this machine's copies of a run and of its children if they are stored elsewhere, and return the run."""
    copy = Copy(run)
    children = copy.children()
    copy.freshen()
    if copy.children() != children:
        copy.freshen()
    if copy.is_remote:
        settle(run)
    return run


def export_on_cluster(run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> bool:
    """Export a checkpoint on its cluster if this machine cannot access it, and return True if that was done.

    `options`: further arguments of `python -m ropewalk.jobs.models.cards.export`.
    """
    return backend_of(run).export(run, directory, step, options)


def write_to_original(run: RunDir, name: str) -> bool:
    """Copy a small file into the original of a run that is stored elsewhere, and return True if that was necessary.

    Raises BackendError.
    """
    backend = backend_of(run)
    if backend.shares_files:
        return False
    backend.sync(run, write={name: (run.path / name).read_text()})
    return True
