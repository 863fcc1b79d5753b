"""A file that one process of one machine creates, whole, whoever else tries, on shared file systems too."""

import errno
import os
import secrets
from pathlib import Path

from ropewalk.cluster.run.files import write_atomically

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


def create_whole(path: Path, text: str) -> bool:
    """Write a file that is not there yet, whole; return False if it is. Of all machines that try, one succeeds."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_atomically(temporary, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS may repeat a request whose answer was lost, and then finds what it has made itself
        return os.stat(temporary).st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_in_place(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, text: str) -> bool:
    """Write a file that is not there yet, on a file system without hard links; a crash may leave it empty."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    return True
