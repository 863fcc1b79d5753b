"""Space that files take on disk."""

import os
from pathlib import Path


def disk_bytes(path: Path) -> int:
    """Return the bytes that a file, or a folder with all files in it, occupies. Files that vanish meanwhile count as nothing."""
    linked: set[tuple[int, int]] = set()  # files with several names count once

    def occupied(name: str) -> int:
        try:
            status = os.lstat(name)
        except OSError:
            return 0
        if status.st_nlink > 1 and not os.path.isdir(name):
            if (status.st_dev, status.st_ino) in linked:
                return 0
            linked.add((status.st_dev, status.st_ino))
        return status.st_blocks * 512

    folders = os.walk(path)
    return occupied(str(path)) + sum(
        occupied(os.path.join(folder, name)) for folder, inner, files in folders for name in (*inner, *files)
    )
