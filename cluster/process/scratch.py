"""Private temporary folders that are removed after their owners have died.

Each folder has a file that its owner keeps locked; the kernel releases the lock when the owner dies. Creating another folder
beside it removes the ones that are no longer locked. Locks are more reliable than process ids: they work across containers,
which have their own process ids, and no later process can be mistaken for the owner.
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

OWNER = ".owner"  # file in each folder: the machine's boot id; locked as long as the folder is in use
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Linux stores named semaphores here
NAME = re.compile(r"[a-z][a-z0-9_]{8}")  # a prefix of one letter (socket paths must be short) and mkdtemp's suffix

_held: dict[Path, list[int]] = {}  # by folder: descriptors of the locks that keep it
os.register_at_fork(after_in_child=_held.clear)  # a child calls `keep` for the folders that it needs


def make_scratch(prefix: str, parent: str | Path | None = None) -> Path:
    """Make a private folder that lasts until `remove_scratch` or this process's end, after a `sweep`. `prefix` is one letter."""
    parent_folder = Path(parent or tempfile.gettempdir())
    sweep(parent_folder)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent_folder))
    unlocked = folder / f"{OWNER}.new"
    unlocked.write_text(machine())
    descriptor = _lock(unlocked, fcntl.LOCK_SH)
    if descriptor is None:  # the file system has no locks, so `sweep` could not tell whether the folder is in use
        unlocked.unlink(missing_ok=True)
        return folder
    unlocked.rename(folder / OWNER)  # visible only once it is locked
    _held[folder] = [descriptor]
    keep(parent_folder, folder)
    return folder


def keep(folder: Path, holder: Path | None = None) -> None:
    """Keep `folder` and its parents, if they are scratch folders, until `holder` (default: `folder`) is removed."""
    for outer in (folder, *folder.parents):
        if NAME.fullmatch(outer.name) and (descriptor := _lock(outer / OWNER, fcntl.LOCK_SH)) is not None:
            _held.setdefault(holder or folder, []).append(descriptor)


def outside(folder: Path) -> Path:
    """Return `folder` or its nearest parent that is not a scratch folder."""
    while NAME.fullmatch(folder.name) and (folder / OWNER).is_file():
        folder = folder.parent
    return folder


def descriptors(folder: Path) -> list[int]:
    """Return the lock descriptors of a folder; a child that inherits them keeps the folder after this process has ended."""
    return list(_held.get(folder, ()))


def name_semaphores(folder: Path) -> None:
    """Name multiprocessing's semaphores of this process after the folder, so that they are removed together with it.

    They are files in /dev/shm that the kernel does not remove. A process that is killed leaves those of its queues.
    """
    import multiprocessing  # noqa: PLC0415 - most processes with scratch folders do not use it

    multiprocessing.current_process()._config["semprefix"] = f"/{folder.name}"  # type: ignore[attr-defined]


def _remove_semaphores(folder: Path) -> None:
    """Remove semaphores named after the folder, or after scratch folders of nodes and agents inside it."""
    inner = (path.name for pattern in ("*", "*/*") for path in folder.glob(pattern) if NAME.fullmatch(path.name))
    prefixes = tuple(f"sem.{name}-" for name in (folder.name, *inner))
    with suppress(OSError), os.scandir(SHARED_MEMORY) as entries:
        for entry in entries:
            if entry.name.startswith(prefixes):
                with suppress(OSError):  # it belongs to another user, or was just removed
                    os.unlink(entry.path)


def remove_scratch(folder: Path) -> None:
    """Remove a folder and its content, and release its locks."""
    _remove_semaphores(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for descriptor in _held.pop(folder, ()):
        os.close(descriptor)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Make a scratch folder, and remove it at the end of the block."""
    folder = make_scratch(prefix)
    try:
        yield folder
    finally:
        remove_scratch(folder)


def abandoned(parent: Path) -> list[Path]:
    """Return this user's scratch folders in `parent` whose owners died on this machine."""
    folders = []
    for folder in _own_folders(parent):
        with suppress(OSError):  # a sweep was faster
            if (descriptor := _lock_unowned(folder)) is not None:
                os.close(descriptor)
                folders.append(folder)
    return folders


def _own_folders(parent: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        yield Path(entry.path)


def sweep(parent: Path) -> int:
    """Remove this user's scratch folders in `parent` whose owners died on this machine, and return their number."""
    count = 0
    for folder in _own_folders(parent):
        with suppress(OSError):  # another sweep was faster
            count += remove_abandoned(folder)
    if count:
        log.info("removed %d folders in %s whose owners were killed", count, parent)
    return count


def machine() -> str:
    """Return an id of this machine and its last boot. Locks of other machines may not be visible here."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        import psutil  # noqa: PLC0415 - slow to import

        return f"{platform.node()} {psutil.boot_time():.0f}"


def _lock_unowned(folder: Path) -> int | None:
    """Lock a scratch folder whose owner died on this machine, and return the lock's descriptor; None if it is in use."""
    owner = folder / OWNER
    is_of_machine = owner.is_file() and owner.read_text() == machine()
    return _lock(owner, fcntl.LOCK_EX) if is_of_machine else None


def remove_abandoned(folder: Path) -> bool:
    """Remove a scratch folder unless its owner lives, or is of another machine. Return True if it was removed. Raises OSError."""
    descriptor = _lock_unowned(folder)
    if descriptor is None:
        return False
    owner = folder / OWNER
    try:
        _remove_semaphores(folder)
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.is_symlink():
                shutil.rmtree(inner, ignore_errors=True)
            elif inner != owner:
                inner.unlink(missing_ok=True)
        owner.unlink()  # last, so that the next sweep tries again if something could not be removed
        with suppress(OSError):
            folder.rmdir()
        return True
    finally:
        os.close(descriptor)


def _lock(path: Path, kind: int) -> int | None:
    """Lock a file and return its descriptor; None if it is locked already, or the file system has no locks."""
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
