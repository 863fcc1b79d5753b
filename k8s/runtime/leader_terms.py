"""Leadership of a run: numbered terms in the run directory, of which the newest one counts.

A term is the exclusive creation of a file with the next number, so two pods can never both be the leader. The next term may be
taken only if the pod of the newest one has left, or if the API server reports it as dead. A pod without network cannot query the
API server, so it cannot take over.

NFS clients may cache a directory listing for a minute, but an opened file is current. Therefore terms are never listed: each has
a file in which its successor records its number, and one in which its own pod records that it has left.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.key import new_key, write_private
from ropewalk.cluster.run.succession import read_mark_afresh, write_mark
from ropewalk.k8s.runtime.timings import UNFINISHED_TERM_SECONDS

FOLDER = "carriers"


@dataclass(frozen=True, kw_only=True)
class LeaderTerm:
    """A period in which one pod leads the run."""

    number: int
    pod: str = ""
    uid: str = ""
    index: int = -1
    address: str = ""
    port: int = 0
    unfinished: bool = False  # its file is still being written


class LeaderTerms:
    """The terms of a run, as followed by one process."""

    def __init__(self, run: RunDir) -> None:
        self._folder = run.path / FOLDER
        self._folder.mkdir(exist_ok=True)  # early, because NFS clients cache for a minute that a folder is missing
        self._newest = 0  # newest term that this process has read

    def newest(self) -> LeaderTerm | None:
        """Return the newest term, or None if there is none yet."""
        while later := read_mark_afresh(self._successor_of(self._newest)):
            self._newest = later
        return self._read(self._newest) if self._newest else None

    def before(self, term: LeaderTerm) -> LeaderTerm | None:
        """Return the previous term, or None for the first one."""
        return self._read(term.number - 1) if term.number > 1 else None

    def take(self, term: LeaderTerm) -> bool:
        """Begin a term with a new key. Returns False if another pod has taken the term with this number."""
        secret = self._key_file(term)
        secret.unlink(missing_ok=True)  # of an earlier term of this pod, which no pod can join any more
        write_private(secret, new_key())  # before the term, so that readers of the term find the key
        try:
            with self._file(term.number).open("x") as stream:
                stream.write(json.dumps(asdict(term)))
            taken = True
        except FileExistsError:
            taken = False
        write_mark(self._successor_of(term.number - 1), term.number)  # also for another pod, which may have died before doing so
        return taken

    def key_of(self, term: LeaderTerm) -> str:
        """Return the key with which the pods of the run authenticate to each other. Raises OSError if there is none."""
        return self._key_file(term).read_text()

    def leave(self, term: LeaderTerm) -> None:
        """Record that the pod of a term has left, so that another pod may take over."""
        write_mark(self._folder / f"{term.number:06d}.left", term.number)

    def has_left(self, term: LeaderTerm) -> bool:
        """Return True if the pod of a term has recorded that it left."""
        return read_mark_afresh(self._folder / f"{term.number:06d}.left") > 0

    def after(self, term: LeaderTerm) -> LeaderTerm | None:
        """Return the newest term if it is later than `term`: its pod has taken over, since that of `term` was presumed dead."""
        last = self.newest()
        return last if last is not None and last.number > term.number else None

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}"

    def _successor_of(self, number: int) -> Path:
        return self._folder / f"{number:06d}.successor"

    def _key_file(self, term: LeaderTerm) -> Path:
        return self._folder / f".{term.uid}.key"

    def _read(self, number: int) -> LeaderTerm:
        with self._file(number).open() as stream:
            try:
                return LeaderTerm(**json.loads(stream.read()))
            except ValueError:
                age = time.time() - os.fstat(stream.fileno()).st_mtime
                return LeaderTerm(number=number, unfinished=age < UNFINISHED_TERM_SECONDS)
