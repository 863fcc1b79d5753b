"""Private folders in the temporary directory that do not outlive their owners, however those end.

Each holds a file that its owner keeps locked; the kernel lets go of the lock as the owner dies. Making the next folder
beside it removes those that nobody holds any more. A lock tells more than a process id: it holds across containers, which
number their processes anew, and no later process can be taken for the owner.
"""

import fcntl
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

OWNER = ".owner"  # in each folder: the machine, by its boot; locked as long as somebody needs the folder
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Linux has named semaphores
NAME = re.compile(r"[a-z][a-z0-9_]{8}")  # a prefix of one letter (sockets' paths are short), and what mkdtemp adds

_held: dict[Path, list[int]] = {}  # by folder, the descriptors that keep it
os.register_at_fork(after_in_child=_held.clear)  # a child keeps what it says itself that it needs


def make_scratch(prefix: str, parent: str | Path | None = None) -> Path:
    """Make a private folder that is this process's own until `remove_scratch` or its end; `prefix` is one letter.

    Folders beside it that nobody owns any more are removed first.
    """
    place = Path(parent or tempfile.gettempdir())
    sweep(place)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    nascent = folder / f"{OWNER}.new"
    nascent.write_text(machine())
    descriptor = _lock(nascent, fcntl.LOCK_SH)
    if descriptor is None:  # this file system knows no locks, so that nobody could tell whether the folder is needed
        nascent.unlink(missing_ok=True)
        return folder
    nascent.rename(folder / OWNER)  # not seen before it is locked
    _held[folder] = [descriptor]
    keep(place, folder)
    return folder


def keep(place: Path, reason: Path | None = None) -> None:
    """Keep the scratch folders around `place`, and itself, as long as this process lives (or holds the folder `reason`)."""
    for outer in (place, *place.parents):
        if NAME.fullmatch(outer.name) and (descriptor := _lock(outer / OWNER, fcntl.LOCK_SH)) is not None:
            _held.setdefault(reason or place, []).append(descriptor)


def outside(place: Path) -> Path:
    """Return the first folder around `place`, or itself, that is no scratch folder: it does not go with a process."""
    while NAME.fullmatch(place.name) and (place / OWNER).is_file():
        place = place.parent
    return place


def descriptors(folder: Path) -> list[int]:
    """Return the descriptors by which a child that inherits them keeps the folder even when this process is gone."""
    return list(_held.get(folder, ()))


def name_semaphores(folder: Path) -> None:
    """Have the named semaphores that multiprocessing makes for this process go with the folder, if this process is killed.

    They are files in /dev/shm that no kernel removes: an agent that is killed with all its processes leaves those of the
    queues by which torch hears from its ranks.
    """
    import multiprocessing  # noqa: PLC0415 - other processes of scratch folders need none of it

    multiprocessing.current_process()._config["semprefix"] = f"/{folder.name}"  # type: ignore[attr-defined]


def _remove_semaphores(folder: Path) -> None:
    """Remove the semaphores that are named after the folder, or after scratch folders of nodes and agents inside it."""
    inner = (path.name for pattern in ("*", "*/*") for path in folder.glob(pattern) if NAME.fullmatch(path.name))
    prefixes = tuple(f"sem.{name}-" for name in (folder.name, *inner))
    with suppress(OSError), os.scandir(SHARED_MEMORY) as entries:
        for entry in entries:
            if entry.name.startswith(prefixes):
                with suppress(OSError):  # another user's, or its owner was faster
                    os.unlink(entry.path)


def remove_scratch(folder: Path) -> None:
    """Remove a folder with all that is in it, and the locks that kept it."""
    _remove_semaphores(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for descriptor in _held.pop(folder, ()):
        os.close(descriptor)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Make a folder that lasts as long as the block."""
    folder = make_scratch(prefix)
    try:
        yield folder
    finally:
        remove_scratch(folder)


def sweep(place: Path) -> int:
    """Remove this user's folders in `place` whose owners died on this machine; returns how many."""
    count = 0
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):  # another sweep was faster
                    count += entry.stat(follow_symlinks=False).st_uid == os.geteuid() and _remove_if_unowned(Path(entry.path))
    if count:
        log.info("removed %d folders in %s whose owners were killed", count, place)
    return count


def machine() -> str:
    """Name this machine since its last boot: locks of another machine may not be seen here."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        import psutil  # noqa: PLC0415 - where it is not needed it is not waited for

        return f"{platform.node()} {psutil.boot_time():.0f}"


def _remove_if_unowned(folder: Path) -> bool:
    owner = folder / OWNER
    if not owner.is_file() or owner.read_text() != machine():
        return False
    descriptor = _lock(owner, fcntl.LOCK_EX)
    if descriptor is None:
        return False
    try:
        _remove_semaphores(folder)
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.is_symlink():
                shutil.rmtree(inner, ignore_errors=True)
            elif inner != owner:
                inner.unlink(missing_ok=True)
        owner.unlink()  # last: what could not be removed stays known as ours
        with suppress(OSError):
            folder.rmdir()
        return True
    finally:
        os.close(descriptor)


def _lock(path: Path, kind: int) -> int | None:
    """Lock a file and return the descriptor; None if another lock excludes it, or the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
