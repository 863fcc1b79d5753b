"""Files of this machine as a tree by content: git's hash of each file and of the whole, which is cached."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ropewalk.cluster.run.files import cache_dir, read_json, write_json

Entry = tuple[str, str]  # git's mode, and the hash of the content
EXECUTABLE, PLAIN, LINK = "100755", "100644", "120000"
CACHED_TREES = 20


def git_hash(kind: bytes, content: bytes) -> bytes:
    """Return git's SHA-1 of an object."""
    return hashlib.sha1(b"%s %d\0%s" % (kind, len(content), content), usedforsecurity=False).digest()


def tree_digest(entries: Mapping[str, Entry]) -> str:
    """Return git's hash of the tree with these files by path, as `git write-tree` does."""
    folders: dict[str, dict[str, Entry]] = {}
    lines: dict[bytes, bytes] = {}
    for path, (mode, digest) in entries.items():
        head, slash, rest = path.partition("/")
        if slash:
            folders.setdefault(head, {})[rest] = (mode, digest)
        else:
            name = os.fsencode(head)
            lines[name] = b"%s %s\0%s" % (mode.encode(), name, bytes.fromhex(digest))
    for head, inner in folders.items():
        name = os.fsencode(head)
        lines[name + b"/"] = b"40000 %s\0%s" % (name, bytes.fromhex(tree_digest(inner)))  # folders sort as if they ended in /
    return git_hash(b"tree", b"".join(lines[name] for name in sorted(lines))).hex()


@dataclass(frozen=True)
class LocalTree:
    """Files of this machine under the names that they get in a copy."""

    files: Mapping[str, Path]
    links: Mapping[str, str] = field(default_factory=dict)  # name → target

    @cached_property
    def digest(self) -> str:
        """Return git's hash of the tree; it is computed again only if a file's size or time differs from the last time."""
        states = [(name, os.stat(path)) for name, path in sorted(self.files.items())]
        details = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_mode) for name, s in states]
        key = hashlib.sha256(json.dumps([details, sorted(self.links.items())]).encode()).hexdigest()
        cache = cache_dir() / "trees.json"
        digests: dict[str, str] = read_json(cache) or {}
        if key not in digests:
            digests = dict([*digests.items()][1 - CACHED_TREES :]) | {key: tree_digest(self.entries)}
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, digests)
        return digests[key]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Return mode and hash of each file and link by name."""
        entries = {name: file_entry(path) for name, path in self.files.items()}
        return entries | {name: (LINK, git_hash(b"blob", os.fsencode(target)).hex()) for name, target in self.links.items()}

    def content(self, name: str) -> bytes:
        """Return the content of a file, or the target of a link."""
        return os.fsencode(self.links[name]) if name in self.links else self.files[name].read_bytes()


def file_entry(path: Path) -> Entry:
    """Return mode and hash of a regular file."""
    mode = EXECUTABLE if path.stat().st_mode & 0o100 else PLAIN
    return mode, git_hash(b"blob", path.read_bytes()).hex()


def files_below(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the files below a folder whose names are wanted, also through links to folders; hidden folders are left out."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(parent, name) for name in sorted(names) if wanted(name))
