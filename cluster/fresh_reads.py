"""Reads that see what another machine has just written, also on NFS, whose clients believe what they saw up to a minute ago."""

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DamagedFileError


def read_afresh(path: Path) -> bytes:
    """Read a file that another machine may have written a moment ago; empty where there is no such file.

    A client of NFS asks for a file's newest bytes when it opens it, but believes for up to a minute that a name is not there,
    unless it would create it: so a missing file is created, empty, where this process may write.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError:  # this process may only read, and has to believe the client
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def read_json_afresh(path: Path) -> Any | None:
    """Read a JSON file that another machine may have written a moment ago; None where there is no such file."""
    return parse_json(read_afresh(path), path)


def parse_json(raw: bytes, path: Path) -> Any | None:
    """The content of a JSON file, by its bytes; None of an empty one, as a power cut leaves it. Raises DamagedFileError."""
    try:
        return json.loads(raw) if raw else None
    except ValueError as error:  # also bytes that are no text
        raise DamagedFileError(f"{path}: damaged: it is no JSON ({error}); restore it, or remove it") from None


def list_afresh(folder: Path) -> list[str]:
    """List a folder into which other machines write; empty where it is missing.

    A client of NFS believes its old listing for up to a minute, unless it changes the folder itself: so it does.
    """
    probe = folder / f".probe.{secrets.token_hex(4)}"
    with suppress(OSError):  # this process may only read, and has to believe the client
        probe.touch()
        probe.unlink(missing_ok=True)
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
