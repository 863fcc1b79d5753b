"""Exclusive creation of files, also between machines on a shared file system."""

import errno
import os
import secrets
from pathlib import Path

from ropewalk.cluster.run.files import sync_all, sync_folder

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


def create_whole(path: Path, text: str) -> bool:
    """Create a file with its content, or return False if it exists. Exactly one of several machines succeeds.

    After the return a power cut does not remove the file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(text)
        sync_all([temporary])
        os.link(temporary, path)
    except FileExistsError:
        # NFS repeats a request if the answer was lost, and may then find the link that it has made itself
        return os.stat(temporary).st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_in_place(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _create_in_place(path: Path, text: str) -> bool:
    """Create a file on a file system without hard links; a crash may leave it empty."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
    except OSError:  # such as a full disk; half of a file would be a damaged one
        path.unlink()
        raise
    sync_folder(path.parent)
    return True
