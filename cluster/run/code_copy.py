"""Verification of code copies, which are named by git's hash of their tree, and archives of them."""

import gzip
import io
import logging
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from ropewalk.cluster.run.content_tree import git_hash
from ropewalk.cluster.run.files import make_private

log = logging.getLogger(__name__)

CACHE = "__pycache__"  # never part of a copy, since Python would run bytecode in it
CACHE_TRIES = 20  # attempts to remove it, while other processes that run from the copy write there


def digest_on_disk(folder: Path) -> str:
    """Return git's SHA-1 of a folder's tree, as `git write-tree` does. Raises OSError for unreadable and special entries."""
    return _tree(folder).hex()


def accept_copy(folder: Path) -> bool:
    """Return True if a copy's content matches its name, else move it aside. Bytecode, which cannot be verified, is removed."""
    if not os.path.lexists(folder):
        return False
    try:
        _remove_bytecode(folder)
        if not folder.is_symlink() and digest_on_disk(folder) == folder.name:
            return True
        problem = "the content does not match the hash in its name"
    except OSError as error:
        problem = str(error)
    aside = folder.with_name(f".{folder.name}.altered.{secrets.token_hex(4)}")
    log.warning("%s: %s; the code copy was changed and is moved to %s", folder, problem, aside.name)
    with suppress(FileNotFoundError):  # another process was faster
        folder.rename(aside)
    return False


def _tree(folder: Path) -> bytes:
    """Return the hash of a folder's git tree object: mode, name and hash of each entry; folders sort as if they ended in /."""
    entries = {}
    for path in folder.iterdir():
        name = os.fsencode(path.name)
        if path.is_symlink() or not path.is_dir():
            mode, content = _file(path)
            entries[name] = b"%s %s\0%s" % (mode, name, git_hash(b"blob", content))
        elif path.name != CACHE and (inner := _tree(path)) != git_hash(b"tree", b""):  # git has no empty folders
            entries[name + b"/"] = b"40000 %s\0%s" % (name, inner)
    return git_hash(b"tree", b"".join(entries[name] for name in sorted(entries)))


def _file(path: Path) -> tuple[bytes, bytes]:
    if path.is_symlink():
        return b"120000", os.fsencode(os.readlink(path))
    if not path.is_file():
        raise OSError(f"{path} is not a regular file")
    return b"100755" if path.stat().st_mode & 0o100 else b"100644", path.read_bytes()


def _remove_bytecode(folder: Path) -> None:
    for parent, folders, _ in os.walk(folder):
        cache = os.path.join(parent, CACHE)
        if CACHE in folders and not os.path.islink(cache):  # a link or file with this name changes the digest
            folders.remove(CACHE)
            _remove_cache(cache)


def _remove_cache(cache: str) -> None:
    for _ in range(CACHE_TRIES):
        shutil.rmtree(cache, ignore_errors=True)
        if not os.path.lexists(cache):
            return
    raise OSError(f"{cache} cannot be removed")


# --- archives


def pack(root: Path, paths: Iterable[Path], *, times: bool = True) -> bytes:
    """Pack files below a folder as tar.gz, with or without their times."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as stream,
    ):
        for path in paths:
            stream.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=_with_times if times else _plain)
    return buffer.getvalue()


def pack_code(folder: Path) -> bytes:
    """Pack a copy of code as tar.gz: the same bytes for the same content."""
    return pack(folder, sorted(path for path in folder.rglob("*") if CACHE not in path.parts), times=False)


def _with_times(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Clear the owner of an entry; who unpacks the archive becomes its owner."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime = 0
    return _with_times(info)


def unpack_code(archive: IO[bytes], target: Path) -> None:
    """Unpack a copy of the code unless the target already has the content that its name promises."""
    if not accept_copy(target):
        unpack(archive, target)
        if not accept_copy(target):
            raise ValueError(f"{target}: the content of the code does not match its name; submit the run again")


def unpack(archive: IO[bytes], target: Path, below: str = "") -> None:
    """Unpack an archive, or the folder `below` in it, to `target`, atomically and even if other pods do the same."""
    if target.exists():
        return
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        make_private(target.parent)
    # rename is atomic only within one filesystem, so the temporary folder is beside its target
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        make_private(temporary)
        with tarfile.open(fileobj=archive, mode="r|gz") as stream:
            stream.extractall(temporary, filter="data")
        (temporary / below).rename(target)
    except OSError:
        if not target.exists():  # else another pod was faster, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
