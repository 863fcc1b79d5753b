"""Small files of a run directory: written whole or not at all, read without surprises."""

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write `path` so that a reader sees the old content or the new, and a crash leaves no half of it."""
    raw = data.encode() if isinstance(data, str) else data
    # rename is atomic only within one filesystem, so the temporary file sits beside its target
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None where there is none (yet)."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def append_line(path: Path, value: Any) -> None:
    """Append one JSON object as one line in a single write, so that lines of several writers never mix."""
    line = (json.dumps(value, default=str) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    complete = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in complete if line.strip()]
