"""Contents of a run that moves: its files with the newest checkpoint, its code, and its packed environment."""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ropewalk.cluster.packages.archive import FOLDER as PACKAGES
from ropewalk.cluster.run import names
from ropewalk.cluster.run.code_copy import pack_code
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.layout import LATEST_NAME, complete_steps, directory_of

# of this place alone: trackers' own files, which are made again from the metrics; requests to the attempts here; processes here
LEFT_BEHIND = frozenset(
    {names.WANDB, names.REQUESTS, names.CHANGES, names.SUPERVISOR, names.QUEUE, names.QUEUE_PROCESS, "supervisor.log"}
    | {"queue.log", "carriers", "conductor.log"}
)


@dataclass(frozen=True, kw_only=True)
class Content:
    """A file under a runs' root, or a copy of code, which travels as an archive."""

    path: str  # relative to the root
    size: int
    digest: str  # SHA-256

    @property
    def is_code(self) -> bool:
        return self.path.startswith(f"{CODE_FOLDER}/")

    def is_checkpoint(self, run: str) -> bool:
        return self.path.startswith(f"{run}/{names.CHECKPOINTS}/")

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def contents_of(run: RunDir, code: Mapping[str, Any]) -> list[Content]:
    """Return what a run needs at another place. `code`: keys of its record that change as it moves."""
    root = run.path.parent
    paths = [*_run_files(run), *_code(root, {**run.record, **code})]
    archive = (run.record.get("packages") or {}).get("archive")
    if archive and (root / PACKAGES / archive).is_file():
        paths.append(root / PACKAGES / archive)
    return [content_at(root, str(path.relative_to(root))) for path in paths]


def content_at(root: Path, path: str) -> Content:
    """Return size and digest of a content."""
    with open_content(root, path) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        return Content(path=path, size=stream.seek(0, os.SEEK_END), digest=digest)


@contextmanager
def open_content(root: Path, path: str) -> Iterator[IO[bytes]]:
    """Open a content for reading; a copy of code as the archive that it travels as."""
    if path.startswith(f"{CODE_FOLDER}/"):
        yield io.BytesIO(pack_code(root / path))
        return
    with (root / path).open("rb") as stream:
        yield stream


def _run_files(run: RunDir) -> Iterator[Path]:
    for name in sorted(os.listdir(run.path)):
        path = run.path / name
        if name == names.CHECKPOINTS:
            yield from _newest_checkpoint(path)
        elif name not in LEFT_BEHIND:
            yield from _files(path)


def _newest_checkpoint(folder: Path) -> Iterator[Path]:
    """Yield the files of the newest complete checkpoint, of a training or of a user's program, and the list of them."""
    latest = read_json(folder / LATEST_NAME)
    programs: list[str] = (latest.get("committed") or []) if isinstance(latest, Mapping) else []
    steps = [] if programs else complete_steps(StoragePath(folder))
    newest = programs[-1] if programs else directory_of(steps[-1]) if steps else None
    if newest is not None:
        for name in (newest, f"{newest}.manifest.json", LATEST_NAME):
            yield from _files(folder / name)


def _files(path: Path) -> Iterator[Path]:
    """Yield the regular files at or below a path, without hidden ones."""
    if path.name.startswith(".") or path.is_symlink():
        return
    if path.is_file():
        yield path
    elif path.is_dir():
        for name in sorted(os.listdir(path)):
            yield from _files(path / name)


def _code(root: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    for part in ("code", "project"):
        snapshot = (record.get(part) or {}).get("snapshot")
        if snapshot and (folder := root / CODE_FOLDER / str(snapshot)).is_dir():
            yield folder
