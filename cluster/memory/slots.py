"""Files of copies of a state in a node's memory. Each writer has two, whose memory is used again for the next ones.

A file is named COPY.NAME. Names of copies grow with attempt, group and number, so the order of names is that of time.
"""

import mmap
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SLOTS = 2  # files of a writer: the newest complete copy, and the one that is being written
MOST_BYTES = 1 << 42
_UNFINISHED = "~"
NAME = re.compile(r"\d{4,}-\d{6,}-\d{8,}\.[a-z0-9.-]{1,100}")


class CopyName(NamedTuple):
    """Attempt and group of a copy, and its number in the group."""

    attempt: int
    group: int
    number: int

    def __str__(self) -> str:
        return f"{self.attempt:04d}-{self.group:06d}-{self.number:08d}"

    @classmethod
    def of(cls, file_name: str) -> "CopyName":
        """Parse the name of a copy, or of one of its files. Raises ValueError."""
        attempt, group, number = file_name.partition(".")[0].split("-")
        return cls(int(attempt), int(group), int(number))

    @property
    def fence(self) -> tuple[int, int]:
        return self.attempt, self.group


class Slots:
    """The files of one writer, in a folder of their own, mapped into this process's memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._maps: dict[int, mmap.mmap] = {}  # by inode

    def create(self, name: str, size: int, keep: str = "") -> memoryview:
        """Return the memory of a new file, which `finish` makes visible: that of an older one if there are two.

        `keep`: the newest complete copy, whose file stays. Raises OSError if memory is short.
        """
        names = os.listdir(self.folder)
        unfinished = [each for each in names if each.endswith(_UNFINISHED)]
        others = sorted(each for each in names if not keep or not each.startswith(f"{keep}."))
        reused = unfinished[:1] or (others[:1] if len(names) >= SLOTS else [])
        path = self.folder / f"{name}{_UNFINISHED}"
        for each in reused:
            with suppress(FileNotFoundError):  # another process has removed it
                os.replace(self.folder / each, path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return memoryview(self._map(descriptor, size))
        finally:
            os.close(descriptor)

    def finish(self, name: str) -> None:
        """Make a file visible, whose content is complete."""
        os.replace(self.folder / f"{name}{_UNFINISHED}", self.folder / name)

    def _map(self, descriptor: int, size: int) -> mmap.mmap:
        """Return the mapping of a file, again for as long as its size stays."""
        status = os.fstat(descriptor)
        if status.st_ino not in self._maps or status.st_size != size:
            os.ftruncate(descriptor, size)
            os.posix_fallocate(descriptor, 0, size)  # otherwise a write would end the process when memory is short
            present = {entry.inode() for entry in os.scandir(self.folder)}
            self._maps = {inode: mapping for inode, mapping in self._maps.items() if inode in present}
            self._maps[status.st_ino] = mmap.mmap(descriptor, size)
        return self._maps[status.st_ino]


def files_of(folder: Path) -> dict[str, Path]:
    """Return the complete files in a node's memory by name, those of all writers."""
    return {path.name: path for path in folder.glob("*/*") if NAME.fullmatch(path.name)}
