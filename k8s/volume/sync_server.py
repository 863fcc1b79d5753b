"""Runs in a pod and reads a run directory for another machine: sends new and grown files, and writes small files.

Usage: python -m ropewalk.k8s.volume.sync_server RUN_DIR, with a JSON request on the standard input:
  {"have": {path: [size, mtime_ns]}, "known": {path: [inode, tail checksum]}, "with": [path prefixes of large folders],
   "write": {path: text}, "beside": {other run: its `have`}, "beside_known": {other run: its `known`}}
Another version of the client or image may only use `have`; then files are sent in full.
After signalling that it reads (see `exec_stdin`), it answers with a line of JSON per file, {"path", "offset", "size", "mtime_ns",
"inode"} and for another run "run", followed by `size` bytes; finally with {"end": true}, and "absent": true if the directory does
not exist.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ropewalk.cluster.run.file_stream import END, send_file
from ropewalk.cluster.run.files import write_atomically
from ropewalk.k8s.api.exec_stdin import ready_stdin

LARGE = ("checkpoints", "wandb")  # sent only if requested
GROWING = (".log", ".jsonl")  # only the new part is sent, unless the file was replaced
TAIL_BYTES = 4096  # compared in addition, because file systems reuse inodes
ABSENT = b'{"end": true, "absent": true}\n'


def send(run: Path, request: dict[str, Any], out: IO[bytes]) -> None:
    """Write the response to a request about the run directory to `out`."""
    if not run.is_dir():  # not yet staged by the run's first pod, deleted, or on another volume
        out.write(ABSENT)
        out.flush()
        return
    for path, text in (request.get("write") or {}).items():
        write_atomically(run / path, text)
    states = _merged(request.get("have"), request.get("known"))
    _send_run(run, states, tuple(request.get("with") or ()), out, {})
    for name, have in (request.get("beside") or {}).items():
        if (run.parent / name).is_dir():
            _send_run(run.parent / name, _merged(have, (request.get("beside_known") or {}).get(name)), (), out, {"run": name})
    out.write(END)
    out.flush()


def tail_of(path: Path, size: int) -> int:
    """Return the CRC-32 of the last bytes within the first `size` bytes of a file."""
    with path.open("rb") as stream:
        stream.seek(max(0, size - TAIL_BYTES))
        return zlib.crc32(stream.read(min(size, TAIL_BYTES)))


def _merged(have: dict[str, Sequence[int]] | None, tails: dict[str, Sequence[int]] | None) -> dict[str, list[int]]:
    """Return size and mtime of each file that the client has and, if it sent them, inode and tail checksum."""
    return {name: [*state[:2], *(tails or {}).get(name, ())] for name, state in (have or {}).items()}


def _send_run(run: Path, states: dict[str, list[int]], wanted: tuple[str, ...], out: IO[bytes], extra: dict[str, str]) -> None:
    for path in _files(run, run, wanted):
        name = str(path.relative_to(run))
        status = path.stat()
        size, mtime, *identity = states.get(name) or [0, -1]
        if (size, mtime) == (status.st_size, status.st_mtime_ns):
            continue
        grown = name.endswith(GROWING) and size < status.st_size and identity
        offset = size if grown and identity == [status.st_ino, tail_of(path, size)] else 0
        left = status.st_size - offset
        state = {"mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        send_file(out, path, {**extra, "path": name, "offset": offset, "size": left, **state})


def _files(run: Path, folder: Path, wanted: tuple[str, ...]) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = str(Path(entry.path).relative_to(run))
        chosen = any(name.startswith(prefix) or prefix.startswith(name) for prefix in wanted)
        if entry.is_dir(follow_symlinks=False):
            if chosen or not name.startswith(LARGE):
                yield from _files(run, Path(entry.path), wanted)
        elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
            yield Path(entry.path)


def main() -> None:
    """Answer the request on the standard input."""
    with ready_stdin() as stream:
        request = json.load(stream)
    send(Path(sys.argv[1]), request, sys.stdout.buffer)


if __name__ == "__main__":
    main()
