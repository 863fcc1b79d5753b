"""Which kind of file system a directory lies on, and how often one may look at files there."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
COHERENT = frozenset({"lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "wekafs", "panfs", "pvfs2"})
CACHING = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "virtiofs"})  # what another machine wrote may be seen late
PASSING = frozenset({"tmpfs", "ramfs", "overlay"})  # of this machine alone, and not for long
LOOK_SECONDS = 0.2
SHARED_LOOK_SECONDS = 2.0  # a thousand nodes that look five times a second are a load that a metadata server feels


@dataclass(frozen=True)
class Mount:
    """The file system of a directory, as the kernel names it."""

    kind: str  # such as nfs4, lustre, fuse.sshfs, overlay, tmpfs, ext4; empty: unknown
    options: frozenset[str] = frozenset()

    @property
    def shared(self) -> bool:
        """Whether other machines may write to this file system too."""
        return self.kind in COHERENT or self.kind in CACHING or self.kind.startswith("fuse")


def mount_of(path: Path, mounts: Path = MOUNTS) -> Mount:
    """Return the mount that a path lies on, or would lie on if it existed."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # not Linux
        return Mount("")
    real, depth, found = os.path.realpath(path), 0, Mount("")
    for line in lines:
        mount, _, system = line.partition(" - ")
        own = mount.split()
        point = own[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= depth:  # of two at one point the later one is on top
            kind, _, options = system.split(" ", 2)
            depth, found = len(point), Mount(kind, frozenset([*own[5].split(","), *options.split(",")]))
    return found


def look_seconds(path: Path) -> float:
    """Return how many seconds to wait between two looks at a file that another process may change."""
    return SHARED_LOOK_SECONDS if mount_of(path).shared else LOOK_SECONDS


class Looks:
    """Says when it is time to look again at files in a directory."""

    def __init__(self, path: Path) -> None:
        self._seconds, self._next = look_seconds(path), 0.0

    def due(self) -> bool:
        """Return whether it is time to look; if so, the next time is reckoned from now on."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._seconds
        return True
