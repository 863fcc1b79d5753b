"""Receives the code and the small inputs of a submission; only missing contents are sent."""

import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.code_copy import accept_copy
from ropewalk.cluster.run.content_tree import EXECUTABLE, LINK, Entry, file_entry, files_below, git_hash
from ropewalk.cluster.run.directory import CODE_FOLDER
from ropewalk.cluster.run.files import make_private
from ropewalk.slurm.ssh.frames import Frames, Kind

RECEIVED = ".received"  # under the runs' root: contents that arrived before a connection broke
KEPT_SECONDS = 86400.0
COMPARED_COPIES = 3  # newest copies of code in which a content is looked for


def receive_trees(frames: Frames, root: Path, digests: Sequence[str]) -> None:
    """Bring the copies of code with these hashes under the runs' root. Raises BackendError, ConnectionEndedError."""
    missing = [digest for digest in digests if not accept_copy(root / CODE_FOLDER / digest)]
    if not missing:
        return
    frames.send(Kind.NEED, {"trees": missing})
    trees: dict[str, dict[str, Entry]] = frames.receive_json(Kind.ENTRIES)
    wanted = {digest for entries in trees.values() for _, digest in entries.values()}
    sources = dict(_present(root, wanted))
    with _received(frames, root, sorted(wanted - sources.keys())) as received:
        for digest in missing:
            _write_copy(root / CODE_FOLDER / digest, trees[digest], {**sources, **received.files})


def receive_files(frames: Frames, root: Path, folder: Path, files: Mapping[str, Entry]) -> None:
    """Bring files, by path below `folder`, whose content differs. Raises BackendError, ConnectionEndedError."""
    changed = {name: entry for name, entry in files.items() if not _has(folder / name, entry)}
    if not changed:
        return
    with _received(frames, root, sorted({digest for _, digest in changed.values()})) as received:
        for name, (mode, digest) in changed.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            _copy(received.files[digest], temporary, mode)
            temporary.replace(target)


def _has(path: Path, entry: Entry) -> bool:
    return path.is_file() and file_entry(path) == entry


def _present(root: Path, wanted: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield the wanted contents that the newest copies of code hold."""
    copies = [path for path in (root / CODE_FOLDER).glob("[0-9a-f]*") if path.is_dir()]
    for copy in sorted(copies, key=lambda path: path.stat().st_mtime, reverse=True)[:COMPARED_COPIES]:
        for path in files_below(copy, lambda name: not name.endswith(".pyc")):
            if not path.is_symlink() and (digest := file_entry(path)[1]) in wanted:
                yield digest, path


class _received:  # noqa: N801 - used like a function
    """Contents that arrive during the block, in files that are removed after it; those of a broken connection remain."""

    def __init__(self, frames: Frames, root: Path, digests: Sequence[str]) -> None:
        self._folder = root / RECEIVED
        if digests:
            with suppress(FileExistsError):
                make_private(self._folder)
            self._forget_old()
        self.files = {digest: self._folder / digest for digest in digests}
        missing = [digest for digest, path in self.files.items() if not path.exists()]
        if missing:
            frames.send(Kind.NEED, {"contents": missing})
            for digest in missing:
                self._receive(frames, digest)

    def __enter__(self) -> "_received":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            for path in self.files.values():
                path.unlink(missing_ok=True)

    def _receive(self, frames: Frames, digest: str) -> None:
        expand, parts = zlib.decompressobj(), list[bytes]()
        while part := frames.receive_content():
            parts.append(expand.decompress(part))
        content = b"".join([*parts, expand.flush()])
        if git_hash(b"blob", content).hex() != digest:
            raise BackendError("a file changed while it was sent; give the command again")
        temporary = self.files[digest].with_name(f".{digest}.{secrets.token_hex(4)}")
        temporary.write_bytes(content)
        temporary.replace(self.files[digest])

    def _forget_old(self) -> None:
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()


def _write_copy(target: Path, entries: Mapping[str, Entry], sources: Mapping[str, Path]) -> None:
    """Make a copy of code that appears at once. Raises BackendError if its content does not match its name."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    folder = part / target.name
    try:
        folder.mkdir(parents=True)
        for name, (mode, digest) in entries.items():
            path = (folder / name).resolve() if mode != LINK else folder / name
            if not path.is_relative_to(folder.resolve() if mode != LINK else folder):
                raise BackendError(f"{name}: not a path inside the code")
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(sources[digest], path, mode)
        if not accept_copy(folder):
            raise BackendError("the code changed while it was sent; give the command again")
        with suppress(OSError):  # another command was faster, with the same content
            folder.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy(source: Path, target: Path, mode: str) -> None:
    if mode == LINK:
        target.symlink_to(os.fsdecode(source.read_bytes()))
        return
    shutil.copyfile(source, target)
    target.chmod(0o755 if mode == EXECUTABLE else 0o644)
