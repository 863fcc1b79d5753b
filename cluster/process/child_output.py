"""Log files of children. Secrets that the children know are masked before anything is written."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ropewalk.cluster.process.log_rotation import MOST_BYTES, rotate
from ropewalk.cluster.process.output import LONGEST_LINE_BYTES
from ropewalk.cluster.secrets.masking import MaskedStream
from ropewalk.cluster.secrets.variables import RunSecrets

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 16

_threads: list[threading.Thread] = []


@contextmanager
def child_output(path: Path, secrets: RunSecrets, *, whole_lines: bool = False) -> Iterator[int]:
    """Yield a descriptor for the output of children: of the log `path`, or of a pipe to it if there are secrets.

    With `whole_lines` what is written ends with a line's end, since other writers append to the log too.
    """
    with path.open("ab", buffering=0) as stream:
        if not secrets.values:
            yield stream.fileno()
            return
    reader, writer = os.pipe()
    copy = _Copy(reader, path, MaskedStream(secrets.mask), whole_lines=whole_lines)
    _threads[:] = [thread for thread in _threads if thread.is_alive()]
    _threads.append(copy)
    copy.start()
    try:
        yield writer
    finally:
        os.close(writer)


def finish_outputs(seconds: float) -> None:
    """Wait until the output of children that have ended is in its logs; not longer, for those that go on."""
    deadline = time.monotonic() + seconds
    for thread in _threads:
        thread.join(max(0.0, deadline - time.monotonic()))


class _Copy(threading.Thread):
    """Copies a pipe to a log until all writers have closed it."""

    def __init__(self, reader: int, path: Path, masked: MaskedStream, *, whole_lines: bool) -> None:
        super().__init__(name=f"output-{path.stem}", daemon=True)
        self._reader, self._path, self._masked, self._whole_lines = reader, path, masked, whole_lines
        self._line = b""  # a last line that is not complete
        self._failed = False
        self._written = path.stat().st_size

    def run(self) -> None:
        try:
            with self._path.open("ab", buffering=0) as stream:
                while chunk := os.read(self._reader, CHUNK_BYTES):
                    self._write(stream, self._masked.feed(chunk))
                self._write(stream, self._masked.end(), last=True)
        finally:
            os.close(self._reader)

    def _write(self, stream: BinaryIO, data: bytes, *, last: bool = False) -> None:
        """Append to the log. Nothing is raised: if nobody read the pipe, the children would stop at their next line."""
        if self._whole_lines:
            data = self._line + data
            end = data.rfind(b"\n") + 1 if len(data) <= LONGEST_LINE_BYTES and not last else len(data)
            data, self._line = data[:end], data[end:]
        if not data:
            return
        try:
            stream.write(data)
            self._failed = False
            self._written += len(data)
            if self._written > MOST_BYTES:  # `rotate_logs` finds only logs that are the output of a process
                rotate(self._path)
                self._written = os.fstat(stream.fileno()).st_size
        except OSError as error:
            if not self._failed:
                log.warning("%s: output was lost: %s", self._path, error)
            self._failed = True
