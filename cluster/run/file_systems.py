"""Type of the file system of a directory, and the poll interval that it allows."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
COHERENT = frozenset({"lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "wekafs", "panfs", "pvfs2"})
CACHING = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "virtiofs"})  # writes of other machines may be visible late
PASSING = frozenset({"tmpfs", "ramfs", "overlay"})  # local and temporary
POLL_SECONDS = 0.2
SHARED_POLL_SECONDS = 2.0  # a thousand nodes at five polls per second would overload a metadata server


@dataclass(frozen=True)
class Mount:
    """Type and options of a mounted file system, in the kernel's terms."""

    kind: str  # such as nfs4, lustre, fuse.sshfs, overlay, tmpfs, ext4; empty if unknown
    options: frozenset[str] = frozenset()

    @property
    def shared(self) -> bool:
        """True if other machines may also write to this file system."""
        return self.kind in COHERENT or self.kind in CACHING or self.kind.startswith("fuse")


def mount_of(path: Path, mounts: Path = MOUNTS) -> Mount:
    """Return the mount that contains a path, whether or not the path exists."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # not Linux
        return Mount("")
    real, depth, deepest = os.path.realpath(path), 0, Mount("")
    for line in lines:
        mount, _, system = line.partition(" - ")
        fields = mount.split()
        point = fields[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= depth:  # of two mounts at the same point, the later one is visible
            kind, _, options = system.split(" ", 2)
            depth, deepest = len(point), Mount(kind, frozenset([*fields[5].split(","), *options.split(",")]))
    return deepest


def poll_seconds(path: Path) -> float:
    """Return the seconds to wait between two reads of a file that another process may change."""
    return SHARED_POLL_SECONDS if mount_of(path).shared else POLL_SECONDS


class PollTimer:
    """Timer for polling files in a directory."""

    def __init__(self, path: Path) -> None:
        self._seconds, self._next = poll_seconds(path), 0.0

    def due(self) -> bool:
        """Return True if the files should be read now; the next interval then starts."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._seconds
        return True
