"""A copy of a run's code, named by git's hash of its tree: it is checked before each use."""

import hashlib
import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

CACHE = "__pycache__"  # never part of a copy: Python writes it beside code, and runs what it finds in it
CACHE_TRIES = 20  # to remove it, while others that run from the copy write there


def digest_on_disk(folder: Path) -> str:
    """Git's hash (SHA-1) of the tree that lies there, as `git write-tree` prints it.

    Raises OSError for what cannot be read, or is neither file, folder nor link.
    """
    return _tree(folder).hex()


def accept_copy(folder: Path) -> bool:
    """Return whether a copy exists and holds what its name says. One that does not is moved aside, to be made anew.

    Bytecode that lies in it is removed: nothing tells whose code that is.
    """
    if not os.path.lexists(folder):
        return False
    try:
        _remove_bytecode(folder)
        if not folder.is_symlink() and digest_on_disk(folder) == folder.name:
            return True
        why = "it does not hold the code that its name says"
    except OSError as error:
        why = str(error)
    aside = folder.with_name(f".{folder.name}.altered.{secrets.token_hex(4)}")
    log.warning("%s: %s; somebody has changed it, and it is kept as %s", folder, why, aside.name)
    with suppress(FileNotFoundError):  # another process was faster
        folder.rename(aside)
    return False


def _tree(folder: Path) -> bytes:
    """The hash of a folder as git's tree object: mode, name and hash of each entry; folders sort as if a slash ended them."""
    entries = {}
    for path in folder.iterdir():
        name = os.fsencode(path.name)
        if path.is_symlink() or not path.is_dir():
            mode, content = _file(path)
            entries[name] = b"%s %s\0%s" % (mode, name, _hash(b"blob", content))
        elif path.name != CACHE and (inner := _tree(path)) != _hash(b"tree", b""):  # git knows no empty ones
            entries[name + b"/"] = b"40000 %s\0%s" % (name, inner)
    return _hash(b"tree", b"".join(entries[name] for name in sorted(entries)))


def _file(path: Path) -> tuple[bytes, bytes]:
    if path.is_symlink():
        return b"120000", os.fsencode(os.readlink(path))
    if not path.is_file():
        raise OSError(f"{path} is no file")
    return b"100755" if path.stat().st_mode & 0o100 else b"100644", path.read_bytes()


def _hash(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(b"%s %d\0%s" % (kind, len(content), content), usedforsecurity=False).digest()


def _remove_bytecode(folder: Path) -> None:
    for where, folders, _ in os.walk(folder):
        cache = os.path.join(where, CACHE)
        if CACHE in folders and not os.path.islink(cache):  # a link or a file of that name is found by the digest
            folders.remove(CACHE)
            _remove_cache(cache)


def _remove_cache(cache: str) -> None:
    for _ in range(CACHE_TRIES):
        shutil.rmtree(cache, ignore_errors=True)
        if not os.path.lexists(cache):
            return
    raise OSError(f"{cache} cannot be removed")
