"""Runs in a pod, and reads a run's directory for a laptop: sends what is new or has grown, and writes what it is told to.

Usage: python -m ropewalk.k8s.volume.sync_server RUN_DIR, with a request as JSON on the standard input:
  {"have": {path: [size, mtime_ns]}, "known": {path: [inode, tail]}, "with": [prefixes of paths that are large],
   "write": {path: text}, "beside": {other run: what is had of it}, "beside_known": {other run: what is known of that}}
A laptop or an image of another version may know nothing more than `have`: a file comes whole then.
After the word that it is ready to read (`ropewalk.k8s.api.exec_stdin`) it answers with a line of JSON per file, {"path",
"offset", "size",
"mtime_ns", "inode"} and for another run "run", followed by `size` bytes; at last with {"end": true}, and "absent": true beside it
where there is no such directory.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ropewalk.cluster.run.files import write_atomically
from ropewalk.k8s.api.exec_stdin import fed

LARGE = ("checkpoints", "wandb")  # left out unless asked for
GROWING = (".log", ".jsonl")  # appended to, unless another file has taken its place
TAIL_BYTES = 4096  # of the end of what is had: the file system may give an inode to another file
CHUNK_BYTES = 1 << 20
END = b'{"end": true}\n'
ABSENT = b'{"end": true, "absent": true}\n'


def send(run: Path, request: dict[str, Any], out: IO[bytes]) -> None:
    """Write the answer to a request about the run's directory to `out`."""
    if not run.is_dir():  # the first pod of the run has not put it there yet, or it was deleted, or this is another volume
        out.write(ABSENT)
        out.flush()
        return
    for path, text in (request.get("write") or {}).items():
        write_atomically(run / path, text)
    came = _merged(request.get("have"), request.get("known"))
    _send_run(run, came, tuple(request.get("with") or ()), out, {})
    for name, have in (request.get("beside") or {}).items():
        if (run.parent / name).is_dir():
            _send_run(run.parent / name, _merged(have, (request.get("beside_known") or {}).get(name)), (), out, {"run": name})
    out.write(END)
    out.flush()


def tail_of(path: Path, size: int) -> int:
    """The CRC-32 of the last bytes of the first `size` bytes of a file."""
    with path.open("rb") as stream:
        stream.seek(max(0, size - TAIL_BYTES))
        return zlib.crc32(stream.read(min(size, TAIL_BYTES)))


def _merged(have: dict[str, Sequence[int]] | None, known: dict[str, Sequence[int]] | None) -> dict[str, list[int]]:
    """Size and time of each file that the laptop has and, where it knows them, inode and tail."""
    return {name: [*state[:2], *(known or {}).get(name, ())] for name, state in (have or {}).items()}


def _send_run(run: Path, came: dict[str, list[int]], wanted: tuple[str, ...], out: IO[bytes], which: dict[str, str]) -> None:
    for path in _files(run, run, wanted):
        name = str(path.relative_to(run))
        status = path.stat()
        size, mtime, *known = came.get(name) or [0, -1]
        if (size, mtime) == (status.st_size, status.st_mtime_ns):
            continue
        grown = name.endswith(GROWING) and size < status.st_size and known
        offset = size if grown and known == [status.st_ino, tail_of(path, size)] else 0
        left = status.st_size - offset
        state = {"mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        header = {**which, "path": name, "offset": offset, "size": left, **state}
        out.write(json.dumps(header).encode() + b"\n")
        with path.open("rb") as stream:
            stream.seek(offset)
            _copy(stream, out, left)


def _files(run: Path, folder: Path, wanted: tuple[str, ...]) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = str(Path(entry.path).relative_to(run))
        chosen = any(name.startswith(word) or word.startswith(name) for word in wanted)
        if entry.is_dir(follow_symlinks=False):
            if chosen or not name.startswith(LARGE):
                yield from _files(run, Path(entry.path), wanted)
        elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
            yield Path(entry.path)


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> None:
    """Copy exactly `size` bytes, as the header has said; a file that was cut short meanwhile is read again next time."""
    while size:
        chunk = source.read(min(size, CHUNK_BYTES)) or bytes(min(size, CHUNK_BYTES))
        out.write(chunk)
        size -= len(chunk)


def main() -> None:
    """Answer the request on the standard input."""
    with fed() as stream:
        request = json.load(stream)
    send(Path(sys.argv[1]), request, sys.stdout.buffer)


if __name__ == "__main__":
    main()
