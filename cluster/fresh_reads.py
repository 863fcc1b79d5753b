"""Reads that see what another machine has just written, also on NFS, whose clients cache names and listings for a minute."""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DamagedFileError


def read_afresh(path: Path) -> bytes:
    """Read a file that another machine may have just written; return no bytes if there is no such file.

    An NFS client fetches a file's newest bytes when it opens the file, but caches for up to a minute that a name does not
    exist, unless it opens the file with O_CREAT. So a missing file is created, empty, if this process may write. Root does so
    only in its own folders: the owner of another one, such as the user of a cluster's pods, could not write to the file.
    """
    try:
        create = os.O_CREAT if os.geteuid() or not path.parent.stat().st_uid else 0
        descriptor = os.open(path, os.O_RDONLY | create, 0o644)
    except OSError:  # missing, or no permission to write: rely on the client's cache
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def read_json_afresh(path: Path) -> Any | None:
    """Read a JSON file that another machine may have just written; return None if there is no such file."""
    return parse_json(read_afresh(path), path)


def parse_json(raw: bytes, path: Path) -> Any | None:
    """Parse the bytes of a JSON file; return None for an empty file, which a power cut leaves. Raises DamagedFileError."""
    try:
        return json.loads(raw) if raw else None
    except ValueError as error:  # includes UnicodeDecodeError
        raise DamagedFileError(f"{path}: damaged: not JSON ({error}); restore the file, or remove it") from None


def list_afresh(folder: Path) -> list[str]:
    """List a folder into which other machines write; return an empty list if it is missing.

    An NFS client caches a listing for up to a minute, unless it changes the folder itself: so a probe file is made and removed.
    """
    probe = folder / f".probe.{secrets.token_hex(4)}"
    with suppress(OSError):  # no permission to write: rely on the client's cache
        probe.touch()
        probe.unlink(missing_ok=True)
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
