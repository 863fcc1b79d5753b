"""What the last snapshot of a tree was, as long as neither the tree nor the copy has been touched since: git need not be asked.

A submission looks at each file's and folder's times, size and inode, which takes milliseconds; git's own look, and the copy's
hash, take as long as all else that a submission does. What was touched just before the last look is not believed: a file may
be written twice within one tick of its file system's clock.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.run.directory import CODE_FOLDER
from ropewalk.cluster.run.files import write_atomically

TICK_SECONDS = 0.1  # file systems count in ticks of some milliseconds; a server's clock may be a little behind
GIT_FILES = ("HEAD", "index", "logs/HEAD", "info/exclude", "config")  # commit, branch, what is staged, what is ignored

Look = dict[str, list[int] | None]  # by path: mtime and ctime in ns, size, inode; None: it is not there


class SnapshotMemory:
    """One tree's last snapshot below a runs' root. `purpose` tells apart what is made of the same tree."""

    def __init__(self, root: Path, place: Path, purpose: Sequence[str]) -> None:
        name = hashlib.sha256(json.dumps([str(place), *purpose]).encode()).hexdigest()[:16]
        self._root, self._place, self._file = root, place, root / CODE_FOLDER / f".known-{name}.json"
        self._since = time.time_ns()

    def recall(self) -> Any | None:
        """What `keep` was given, if nothing was touched since; else None."""
        try:
            known = orjson.loads(self._file.read_bytes())
            copy = self._root / CODE_FOLDER / known["copy"]
            untouched = _look(known["tree"]) == known["tree"] and _look(known["copied"]) == known["copied"] and copy.is_dir()
            return known["value"] if untouched else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or half of one
            return None

    def keep(self, names: Iterable[str], folders: Iterable[Path], copy: str, value: Any) -> None:
        """Remember what was made of the tree's files `names` and its `folders`, and its copy's name."""
        place = str(self._place)
        tree = _look([*(f"{place}/{name}" for name in names), *map(str, folders), *_git_files(self._place)])
        copied = _look(_below(self._root / CODE_FOLDER / copy))
        newest = max((max(seen[:2]) for seen in tree.values() if seen), default=0)
        if newest < self._since - TICK_SECONDS * 1e9:
            text = orjson.dumps({"tree": tree, "copied": copied, "copy": copy, "value": value}).decode()
            with suppress(OSError):  # it only saves time
                write_atomically(self._file, text)


def _look(paths: Iterable[str]) -> Look:
    found: Look = {}
    for path in paths:
        try:
            seen = os.lstat(path)
            found[path] = [seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino]
        except OSError:
            found[path] = None
    return found


def _below(folder: Path) -> Iterable[str]:
    for where, _, files in os.walk(folder):
        yield where
        yield from (f"{where}/{name}" for name in files)


def _git_files(place: Path) -> list[str]:
    """Files of the repository that change with commit, branch and index; in a linked work tree they lie elsewhere."""
    git = place / ".git"
    if git.is_file():
        git = Path(place / git.read_text().partition("gitdir:")[2].strip())
    return [str(git / name) for name in GIT_FILES] if git.is_dir() else []
