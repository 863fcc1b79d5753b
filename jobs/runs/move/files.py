"""The files of a cluster's runs: on this machine, or where only its pods see them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from ropewalk.cluster.backends.base import Backend
from ropewalk.jobs.runs.move import place


class Files:
    """Access to the files of one run."""

    def __init__(self, backend: Backend, root: Path, run: str) -> None:
        """`root`: the runs' root on this machine, if it sees the cluster's files."""
        self._backend, self._root, self._run = backend, root, run

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Do an operation of `place`, and return its answer. Raises RopewalkError."""
        answer = io.BytesIO()
        self.pass_on({"do": operation, **arguments}, io.BytesIO(), answer)
        return dict(json.loads(answer.getvalue()))

    def fingerprints(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return the fingerprint of each input that is a path; URLs have none."""
        local = [path for path in paths if "://" not in path]
        return self.ask("fingerprints", paths=local) if local else {}

    def pass_on(self, request: dict[str, Any], stdin: IO[bytes], stdout: IO[bytes]) -> None:
        """Do an operation that reads or writes a stream of files. Raises RopewalkError."""
        request = {"run": self._run, **request}
        if self._backend.shares_files:
            place.serve(self._root, request, stdin, stdout)
        else:
            line = json.dumps(request).encode() + b"\n"
            self._backend.run_beside(place.__name__, cast("BinaryIO", _After(line, stdin)), cast("BinaryIO", stdout))


class _After:
    """A line and then a stream, as one file to read."""

    def __init__(self, line: bytes, stream: IO[bytes]) -> None:
        self._line, self._stream = line, stream

    def read(self, size: int = -1) -> bytes:
        line, self._line = self._line, b""
        return line or self._stream.read(size)
