"""Runs that lie on a volume of their cluster which this machine does not see: its copy of them is brought up to date."""

import logging
from pathlib import Path

from cluster.backends.base import Backend
from cluster.backends.profiles import load_backend
from cluster.errors import RopewalkError
from cluster.run.directory import RunDir
from cluster.run.files import read_json
from jobs.sweep.records import FOLDER

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

    def freshen(self) -> None:
        """Bring it up to date; where that fails, say so once and go on with what there is."""
        if self._backend is None:
            return
        try:
            self._backend.sync(self.run, beside=trials_of(self.run))
        except RopewalkError as error:
            self._tell(str(error))
        else:
            self._said = ""

    def _tell(self, error: str) -> None:
        if error != self._said:
            log.warning("%s; what this machine has of %s may be old", error, self.run.id)
        self._said = error


def freshen(run: RunDir) -> RunDir:
    """The run, its copy on this machine brought up to date if it is one, and with a sweep's those of its trials."""
    copy, known = Copy(run), trials_of(run)
    copy.freshen()
    if trials_of(run) != known:
        copy.freshen()
    return run


def trials_of(run: RunDir) -> list[str]:
    """The runs of a sweep's trials, as far as this machine knows of them."""
    if run.record.get("job") != "sweep":
        return []
    records = [read_json(path) or {} for path in sorted((run.path / FOLDER).glob("[0-9]*.json"))]
    return [str(name) for record in records for name in record.get("runs") or ()]


def export_elsewhere(run: RunDir, directory: Path, step: int | None) -> bool:
    """Export where the checkpoints lie, if that is not here; whether that was done."""
    return load_backend(str(run.record.get("cluster", "local"))).export(run, directory, step)


def write_there(run: RunDir, name: str) -> bool:
    """Write a small file of this machine's copy of a run where the run lies, if that is not here; whether it was not.

    Raises BackendError.
    """
    backend = load_backend(str(run.record.get("cluster", "local")))
    if backend.shares_files:
        return False
    backend.sync(run, write={name: (run.path / name).read_text()})
    return True
