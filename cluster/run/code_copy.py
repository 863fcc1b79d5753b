"""A copy of a run's code, named by the digest of what it holds: whoever uses one that is there already looks whether it does."""

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

CACHE = "__pycache__"  # never part of a copy: Python writes it beside code, and runs what it finds in it
CACHE_TRIES = 20  # to remove it, while others that run from the copy write there
DIGEST_CHARACTERS = 32
ALGORITHM = "sha256"


def digest_of(entries: Mapping[str, tuple[bytes, bytes]]) -> str:
    """The digest of a tree, of each entry's kind (f a file, x an executable one, l a link) and what it holds, by its path."""
    whole = hashlib.new(ALGORITHM)
    for name, (kind, content_hash) in sorted(entries.items()):
        whole.update(b"%s %s\0%s" % (kind, os.fsencode(name), content_hash))
    return whole.hexdigest()[:DIGEST_CHARACTERS]


def hash_of(content: bytes) -> bytes:
    """What an entry of `digest_of` tells of a file's content, or of a link's target."""
    return hashlib.new(ALGORITHM, content).digest()


def digest_on_disk(folder: Path) -> str:
    """The digest of a copy as it lies there. Raises OSError for what cannot be read, or is neither file, folder nor link."""
    return digest_of({name: _entry(folder / name) for name in _names(folder)})


def accept_copy(folder: Path) -> bool:
    """Whether a copy is there and holds what its name says. One that does not is moved aside, so that it can be made anew.

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


def _names(folder: Path) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != CACHE or os.path.islink(os.path.join(where, name))]
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        for name in (*files, *links):
            yield os.path.relpath(os.path.join(where, name), folder)


def _entry(path: Path) -> tuple[bytes, bytes]:
    if path.is_symlink():
        return b"l", hash_of(os.fsencode(os.readlink(path)))
    if not path.is_file():
        raise OSError(f"{path} is no file")
    with path.open("rb") as stream:
        return b"x" if path.stat().st_mode & 0o100 else b"f", hashlib.file_digest(stream, ALGORITHM).digest()


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
