"""Which kind of file system a directory lies on, and how often one may look at files there."""

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
COHERENT = frozenset({"lustre", "gpfs", "beegfs", "ceph", "cephfs", "fuse.ceph-fuse", "wekafs", "panfs", "orangefs"})
CACHING = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "virtiofs"})  # what another machine wrote may be seen late
LOOK_SECONDS = 0.2
SHARED_LOOK_SECONDS = 2.0  # a thousand nodes that look five times a second are a load that a metadata server feels


def kind_of(path: Path) -> str:
    """The file system's type in the kernel's words, such as nfs4, lustre, fuse.sshfs, overlay, tmpfs, ext4; empty: unknown."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:  # not Linux
        return ""
    real, found = os.path.realpath(path), ("", "")
    for line in lines:
        mount, _, system = line.partition(" - ")
        point = mount.split()[4].encode().decode("unicode_escape")  # a blank is \040
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):  # of two at one point the later one is on top
            found = (point, system.split()[0])
    return found[1]


def is_shared(kind: str) -> bool:
    """Whether other machines may write there too."""
    return kind in COHERENT or kind in CACHING or kind.startswith("fuse")


def look_seconds(path: Path) -> float:
    """How long to wait between two looks at a file that another process may change."""
    return SHARED_LOOK_SECONDS if is_shared(kind_of(path)) else LOOK_SECONDS
