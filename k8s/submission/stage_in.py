"""Puts a run that was sent along with its Job on the volume, where its submitter does not see that: directory and code.

Usage: python -m ropewalk.k8s.submission.stage_in STAGED RUN_DIR     STAGED: a folder with run.tar.gz and perhaps code.tar.gz
       python -m ropewalk.k8s.submission.stage_in - CODE_DIR         a code.tar.gz on the standard input
Every pod of the run runs it as it starts, with the image's own ropewalk; the first one does it, the others find it done.
"""

import secrets
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from ropewalk.cluster.run.code_copy import accept_copy
from ropewalk.cluster.run.files import make_private
from ropewalk.k8s.api.exec_stdin import fed

RUN_ARCHIVE, CODE_ARCHIVE = "run.tar.gz", "code.tar.gz"
INTENTIONS = ("requests.json",)  # what a user wanted of an earlier submission


def stage_in(staged: Path, run: Path) -> None:
    """Put a run's newest attempt on the volume as it was submitted, and its code if that came along."""
    for archive in [staged / CODE_ARCHIVE] if (staged / CODE_ARCHIVE).exists() else []:
        with archive.open("rb") as stream:
            place_code(stream, run.parent / code_of(staged))
    with (staged / RUN_ARCHIVE).open("rb") as stream:
        if not (run / "run.yaml").exists():
            place(stream, run)
            return
    for attempt in _attempts(staged):
        if (run / attempt).exists():
            continue
        for name in INTENTIONS:
            (run / name).unlink(missing_ok=True)
        with (staged / RUN_ARCHIVE).open("rb") as stream:
            place(stream, run / attempt, below=attempt)


def code_of(staged: Path) -> str:
    """Where the code that was sent along belongs, below the runs' root."""
    return (staged / "code").read_text()


def place_code(archive: IO[bytes], target: Path) -> None:
    """Unpack a copy of the code, unless one is there that holds what its name says."""
    if not accept_copy(target):
        place(archive, target)
        if not accept_copy(target):
            raise ValueError(f"{target}: the code that was sent is not what its name says; submit the run again")


def place(archive: IO[bytes], target: Path, below: str = "") -> None:
    """Unpack an archive, or what lies in a folder of it, as `target`: whole or not at all, and by one of many at a time."""
    if target.exists():
        return
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        make_private(target.parent)
    # rename is atomic only within one filesystem, so the temporary folder lies beside its target
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        make_private(temporary)
        with tarfile.open(fileobj=archive, mode="r|gz") as stream:
            stream.extractall(temporary, filter="data")
        (temporary / below).rename(target)
    except OSError:
        if not target.exists():  # else another pod was faster, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _attempts(staged: Path) -> Iterator[str]:
    with tarfile.open(staged / RUN_ARCHIVE) as stream:
        yield from sorted({"/".join(name.split("/")[:2]) for name in stream.getnames() if name.startswith("attempts/")})


def main() -> None:
    """Put on the volume what the command line names."""
    staged, target = sys.argv[1:]
    if staged == "-":
        with fed() as archive:
            place_code(archive, Path(target))
    else:
        stage_in(Path(staged), Path(target))


if __name__ == "__main__":
    main()
