"""Unpacks a run that was sent with its Job onto the volume: its directory and its code. For submitters without the volume.

Usage: python -m ropewalk.k8s.submission.stage_in STAGED RUN_DIR     STAGED: a folder with run.tar.gz and perhaps code.tar.gz
       python -m ropewalk.k8s.submission.stage_in - CODE_DIR         a code.tar.gz on the standard input
Every pod of the run executes it at its start with the image's own ropewalk; only the first one has work to do.
"""

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ropewalk.cluster.run.code_copy import unpack, unpack_code
from ropewalk.k8s.api.exec_stdin import ready_stdin

RUN_ARCHIVE, CODE_ARCHIVE = "run.tar.gz", "code.tar.gz"
OBSOLETE = ("requests.json",)  # user requests to an earlier submission


def stage_in(staged: Path, run: Path) -> None:
    """Unpack a run's newest attempt, and its code if it was sent with it, onto the volume."""
    for archive in [staged / CODE_ARCHIVE] if (staged / CODE_ARCHIVE).exists() else []:
        with archive.open("rb") as stream:
            unpack_code(stream, run.parent / code_of(staged))
    with (staged / RUN_ARCHIVE).open("rb") as stream:
        if not (run / "run.yaml").exists():
            unpack(stream, run)
            return
    for attempt in _attempts(staged):
        if (run / attempt).exists():
            continue
        for name in OBSOLETE:
            (run / name).unlink(missing_ok=True)
        with (staged / RUN_ARCHIVE).open("rb") as stream:
            unpack(stream, run / attempt, below=attempt)


def code_of(staged: Path) -> str:
    """Return the path of the code that was sent, relative to the runs directory."""
    return (staged / "code").read_text()


def _attempts(staged: Path) -> Iterator[str]:
    with tarfile.open(staged / RUN_ARCHIVE) as stream:
        yield from sorted({"/".join(name.split("/")[:2]) for name in stream.getnames() if name.startswith("attempts/")})


def main() -> None:
    """Unpack onto the volume what the command line names."""
    staged, target = sys.argv[1:]
    if staged == "-":
        with ready_stdin() as archive:
            unpack_code(archive, Path(target))
    else:
        stage_in(Path(staged), Path(target))


if __name__ == "__main__":
    main()
