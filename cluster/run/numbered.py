"""A history in numbered files: each number is written by one process of one machine, whole, and never changed."""

import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.fresh_reads import list_afresh
from cluster.run.files import json_text, write_atomically

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)

Entries = Mapping[int, Mapping[str, Any]]


def read_numbered(folder: Path) -> dict[int, dict[str, Any]]:
    """Every entry by its number, ascending, also those that another machine has written a moment ago."""
    found: dict[int, dict[str, Any]] = {}
    for name in sorted(list_afresh(folder)):
        number, _, suffix = name.partition(".")
        if suffix == "json" and number.isdigit():
            with suppress(FileNotFoundError, ValueError):  # where files cannot be linked, a crash leaves an empty one
                found[int(number)] = json.loads((folder / name).read_bytes())
    return found


def append_numbered(folder: Path, decide: Callable[[Entries], Mapping[str, Any] | None]) -> int | None:
    """Add what `decide` makes of the entries that there are, as the next one; returns its number, or None where it made none.

    Where another process is faster, `decide` is asked again, with that one's entry too: what it has seen is all that there was
    when its own was added. Nothing is locked, and a kill leaves the entry whole or not there. The folder must exist.
    """
    while True:
        entries = read_numbered(folder)
        value = decide(entries)
        if value is None:
            return None
        number = max(entries, default=0) + 1
        while not _create(folder / f"{number:06d}.json", json_text(value)):
            if number in read_numbered(folder):
                break  # somebody else was faster, and said something
            number += 1  # an empty file, which a crash has left
        else:
            return number


def _create(path: Path, text: str) -> bool:
    """Write a file that is not there yet, whole; False if it is. Of all machines that try, one succeeds."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_atomically(temporary, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS may repeat a request whose answer was lost, and then finds what it has made itself
        return os.stat(temporary).st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_in_place(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, text: str) -> bool:
    """Write a file that is not there yet, on a file system without hard links; a crash may leave it empty."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    return True
