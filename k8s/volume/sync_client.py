"""This machine's copy of a run on a volume that is not mounted here: its state, and writing updates to it."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.file_stream import StreamWriter
from ropewalk.cluster.run.files import make_private, read_json, write_json
from ropewalk.k8s.volume.sync_server import tail_of

# size, mtime, inode and tail checksum of files as received; a file that was changed here since is not appended to
RECEIVED = ".came.json"


def request_of(root: Path, beside: Sequence[str] = ()) -> dict[str, Any]:
    """Return the request to `ropewalk.k8s.volume.sync_server` that updates the copies of a run and of those beside it."""
    ours, others = _unchanged(root), {name: _unchanged(root.parent / name) for name in beside}
    return {
        "have": _sizes(ours),
        "known": _tails(ours),
        "beside": {name: _sizes(states) for name, states in others.items()},
        "beside_known": {name: _tails(states) for name, states in others.items()},
    }


def _unchanged(root: Path) -> dict[str, list[int]]:
    """Return the files of a copy that were not changed since they were received, with their state."""
    received, unchanged = read_json(root / RECEIVED) or {}, {}
    for name, state in received.items():
        path = root / name
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            if state[:2] == [status.st_size, status.st_mtime_ns]:
                unchanged[name] = state
    return unchanged


def _sizes(states: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {name: state[:2] for name, state in states.items()}


def _tails(states: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {name: state[2:] for name, state in states.items() if len(state) == 4}  # older versions recorded no tail


class SyncWriter(StreamWriter):
    """Writes the response of `sync_server`, chunk by chunk, to the copies of a run and of those beside it."""

    def __init__(self, root: Path, beside: Sequence[str] = ()) -> None:
        super().__init__()
        self.root, self.absent = root, False
        self._folders = {"": root, **{name: root.parent / name for name in beside}}
        self._received: dict[str, dict[str, list[int]]] = {}  # by run

    def finish(self, header: Mapping[str, Any]) -> None:
        super().finish(header)
        self.absent = bool(header.get("absent"))

    def open_file(self, header: Mapping[str, Any]) -> IO[bytes]:
        path, run = self._path(header), self._folders[header.get("run", "")]
        run.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # the copy exists already
            make_private(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not header["offset"]:
            return path.with_name(f".{path.name}.part").open("wb")
        file = path.open("r+b")
        file.seek(header["offset"])
        return file

    def finish_file(self, header: Mapping[str, Any]) -> None:
        path = self._path(header)
        if not header["offset"]:
            path.with_name(f".{path.name}.part").replace(path)
        size, time_ns = header["offset"] + header["size"], header["mtime_ns"]
        os.utime(path, ns=(time_ns, time_ns))
        state = [size, time_ns, *([header["inode"], tail_of(path, size)] if "inode" in header else [])]
        self._received.setdefault(header.get("run", ""), {})[header["path"]] = state

    def remember(self) -> None:
        """Record which files were received, after the complete response."""
        for run, received in self._received.items():
            record = self._folders[run] / RECEIVED
            write_json(record, {**(read_json(record) or {}), **received})

    def _path(self, header: Mapping[str, Any]) -> Path:
        root = self._folders.get(header.get("run", ""))
        path = ((root or self.root) / str(header["path"])).resolve()
        if root is None or not path.is_relative_to(root.resolve()):
            raise BackendError(f"a pod sent {header['path']!r}, which is not inside the run directory")
        return path
