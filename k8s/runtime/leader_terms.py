"""Which pod leads the run: numbered terms in the run directory, of which the newest counts.

A term is the exclusive creation of a file whose number only grows, so two pods can never both believe that they lead. The next
term may be taken only when the pod of the newest has left, or is dead by the word of the API server: a pod that is cut off cannot
ask, and so can take nothing over.

A client of NFS may believe an old listing for a minute, but opens a file as it is now. So nobody lists the terms: each has a
file into which its successor writes its number, and one into which its own pod writes that it has left.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ropewalk.cluster.backends.submission import submission_details
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.key import new_key, write_private
from ropewalk.cluster.run.succession import read_mark_afresh, write_mark
from ropewalk.k8s.runtime.timings import UNFINISHED_TERM_SECONDS

FOLDER = "carriers"


@dataclass(frozen=True, kw_only=True)
class LeaderTerm:
    """A pod that leads the run, or did."""

    number: int
    pod: str = ""
    uid: str = ""
    index: int = -1
    address: str = ""
    port: int = 0
    unfinished: bool = False  # it is being written


class LeaderTerms:
    """The terms of a run, as one process follows them."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._folder = run, run.path / FOLDER
        self._folder.mkdir(exist_ok=True)  # a client of NFS would believe for a minute that it is missing
        self._known = 0  # the newest term that was seen

    def newest(self) -> LeaderTerm | None:
        """The term that counts; None: there was none yet."""
        while later := read_mark_afresh(self._successor_of(self._known)):
            self._known = later
        return self._read(self._known) if self._known else None

    def before(self, term: LeaderTerm) -> LeaderTerm | None:
        """The term whose pod led the run before."""
        return self._read(term.number - 1) if term.number > 1 else None

    def take(self, term: LeaderTerm) -> bool:
        """Begin a term, with a key of its own; False: another pod has begun the term of this number, and leads the run."""
        secret = self._key_file(term)
        secret.unlink(missing_ok=True)  # of an earlier term of this pod: nobody joins that any more
        write_private(secret, new_key())  # before the term: whoever has read that finds it
        try:
            with self._file(term.number).open("x") as stream:
                stream.write(json.dumps(asdict(term)))
            mine = True
        except FileExistsError:
            mine = False
        write_mark(self._successor_of(term.number - 1), term.number)  # the other may have died before it could write it
        return mine

    def key_of(self, term: LeaderTerm) -> str:
        """The key by which the run's pods prove to each other that they belong to it. Raises OSError if there is none."""
        return self._key_file(term).read_text()

    def leave(self, term: LeaderTerm) -> None:
        """Write that the pod of a term has left: any other may lead the run from here."""
        write_mark(self._folder / f"{term.number:06d}.left", term.number)

    def has_left(self, term: LeaderTerm) -> bool:
        """Whether the pod of a term has left in order."""
        return read_mark_afresh(self._folder / f"{term.number:06d}.left") > 0

    def end_of(self, term: LeaderTerm, job: str) -> str:
        """Why a term of this Job's pod has ended, though nobody told the pod; empty: it has not."""
        last = self.newest()
        if last is not None and last.number > term.number:
            return f"pod {last.pod} leads the run by now: this pod lost leadership (it was presumed dead)"
        if (name := submission_details(self._run).get("name")) != job:
            return f"Job {name} has the run by now: it was submitted again"
        return ""

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
