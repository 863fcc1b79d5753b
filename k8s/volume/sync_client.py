"""This machine's copy of a run that lies on a volume which it does not see: what it holds, and how it is kept up to date."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.files import make_private, read_json, write_json
from ropewalk.k8s.volume.sync_server import tail_of

# size, time, inode and tail of files as they came: one that was written to here since is none to append to
CAME = ".came.json"


def request_of(root: Path, beside: Sequence[str] = ()) -> dict[str, Any]:
    """What to ask `ropewalk.k8s.volume.sync_server` for, to bring the copies of a run and of those beside it up to date."""
    ours, others = _unchanged(root), {name: _unchanged(root.parent / name) for name in beside}
    return {
        "have": _having(ours),
        "known": _known(ours),
        "beside": {name: _having(came) for name, came in others.items()},
        "beside_known": {name: _known(came) for name, came in others.items()},
    }


def _unchanged(root: Path) -> dict[str, list[int]]:
    """The files of a copy that are as they came, and the state of each then."""
    came, found = read_json(root / CAME) or {}, {}
    for name, state in came.items():
        path = root / name
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            if state[:2] == [status.st_size, status.st_mtime_ns]:
                found[name] = state
    return found


def _having(came: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {name: state[:2] for name, state in came.items()}


def _known(came: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {name: state[2:] for name, state in came.items() if len(state) == 4}  # else an older version's


class SyncWriter:
    """Writes the answer of `ropewalk.k8s.volume.sync_server`, as it arrives, into the local copies of a run and its siblings."""

    def __init__(self, root: Path, beside: Sequence[str] = ()) -> None:
        self.root, self.complete, self.absent = root, False, False
        self._places = {"": root, **{name: root.parent / name for name in beside}}
        self._came: dict[str, dict[str, list[int]]] = {}  # by run
        self._buffer = bytearray()
        self._header: dict[str, Any] | None = None
        self._left = 0
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Start anew: forget the half of an answer that was cut off."""
        if self._file is not None:
            self._file.close()
        self.complete, self._header, self._file = False, None, None
        self._buffer.clear()

    def write(self, data: bytes) -> int:
        """Take the next piece of the answer."""
        self._buffer += data
        while self._step():
            pass
        return len(data)

    def _step(self) -> bool:
        if self._header is None:
            line, newline, rest = self._buffer.partition(b"\n")
            if not newline:
                return False
            self._buffer = rest
            header = json.loads(line)
            if header.get("end"):
                self.complete, self.absent = True, bool(header.get("absent"))
                return False
            self._open(header)
        assert self._file is not None
        piece = self._buffer[: self._left]
        self._file.write(piece)
        self._left -= len(piece)
        del self._buffer[: len(piece)]
        if self._left:
            return False
        self._close()
        return True

    def _open(self, header: dict[str, Any]) -> None:
        path, run = self._place(header), self._places[header.get("run", "")]
        run.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # it has not come for the first time
            make_private(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._header, self._left = header, header["size"]
        if header["offset"]:
            self._file = path.open("r+b")
            self._file.seek(header["offset"])
        else:
            self._file = path.with_name(f".{path.name}.part").open("wb")

    def _close(self) -> None:
        assert self._header is not None
        assert self._file is not None
        path = self._place(self._header)
        self._file.close()
        if not self._header["offset"]:
            path.with_name(f".{path.name}.part").replace(path)
        size, time_ns = self._header["offset"] + self._header["size"], self._header["mtime_ns"]
        os.utime(path, ns=(time_ns, time_ns))
        state = [size, time_ns, *([self._header["inode"], tail_of(path, size)] if "inode" in self._header else [])]
        self._came.setdefault(self._header.get("run", ""), {})[self._header["path"]] = state
        self._header = self._file = None

    def remember(self) -> None:
        """Write down which files have come, once the whole answer has."""
        for run, came in self._came.items():
            place = self._places[run] / CAME
            write_json(place, {**(read_json(place) or {}), **came})

    def _place(self, header: Mapping[str, Any]) -> Path:
        root = self._places.get(header.get("run", ""))
        path = ((root or self.root) / str(header["path"])).resolve()
        if root is None or not path.is_relative_to(root.resolve()):
            raise BackendError(f"a pod sent {header['path']!r}, which does not lie in the run's directory")
        return path
