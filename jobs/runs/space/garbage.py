"""Files under a runs' root that no run needs any more: code copies, prepared and fetched data, work folders, rests."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.packages.archive import FOLDER as PACKAGES_FOLDER
from ropewalk.cluster.process.scratch import abandoned, remove_abandoned
from ropewalk.cluster.run import names
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.cluster.run.disk import disk_bytes
from ropewalk.cluster.run.node_memory import memory_root
from ropewalk.datapipe.passes.task import WORK
from ropewalk.jobs.runs.notify.notifier import ARRAYS as OUTBOXES
from ropewalk.jobs.runs.show.status import is_final
from ropewalk.jobs.runs.space.remove import REMOVED

YOUNG_SECONDS = 24 * 3600.0  # a run that is being submitted or prepares its data may not name its files yet

OLD_SECONDS = 30 * 86400.0  # a client gives an unanswered submission again within this time


class Garbage(NamedTuple):
    """A file or folder that can be deleted, and the reason."""

    kind: str  # code | prepared | packages | notify | fetched | submission | arriving | work | removed | memory | version
    path: Path
    bytes: int
    reason: str

    def plain(self) -> dict[str, Any]:
        return {**self._asdict(), "path": str(self.path)}


def find_garbage(root: Path) -> Iterator[Garbage]:
    """Yield what can be deleted under a runs' root. Raises DamagedFileError for a run whose files cannot be read."""
    runs = RunDir.all(root)
    texts, live = list(map(_texts_of, runs)), [run.id for run in runs if not is_final(run)]
    for kind, folder, reason in (
        ("code", root / CODE_FOLDER, "no run uses this copy of code"),
        ("prepared", root / names.PREPARED_FOLDER, "no run uses this prepared data set"),
        ("packages", root / PACKAGES_FOLDER, "no run uses this environment"),
        ("notify", root / OUTBOXES, "messages about runs that are gone"),
    ):
        for path in _old_entries(folder):
            if not any(path.name in text for text in texts) and not any(run_id in path.name for run_id in live):
                yield Garbage(kind, path, disk_bytes(path), reason)
    for path in _old_entries(root / names.SUBMISSIONS_FOLDER, OLD_SECONDS):
        yield Garbage("submission", path, disk_bytes(path), "note of a submission through ssh that its client no longer repeats")
    for path in _old_entries(root / names.ARRIVING_FOLDER, OLD_SECONDS):
        yield Garbage("arriving", path, disk_bytes(path), "contents of a run whose move to this place was not finished")
    yield from _fetched(root / names.STORE_FOLDER, texts)
    yield from _work_folders(runs)
    for path in sorted((root / REMOVED).glob("*")):
        yield Garbage("removed", path, disk_bytes(path), "rest of a removed run")


def find_memory_garbage() -> Iterator[Garbage]:
    """Yield copies of training states in this machine's memory whose agents were killed."""
    for path in abandoned(memory_root()):
        yield Garbage("memory", path, disk_bytes(path), "copies of a training state in memory; their agent was killed")


def delete_garbage(garbage: Garbage) -> None:
    """Delete a file or folder. Raises OSError."""
    if garbage.kind == "memory":
        remove_abandoned(garbage.path)
    elif garbage.path.is_dir() and not garbage.path.is_symlink():
        shutil.rmtree(garbage.path)
    else:
        garbage.path.unlink(missing_ok=True)


def _texts_of(run: RunDir) -> str:
    """Return the files in which a run names its copy of code and its prepared data."""
    run.record  # noqa: B018 - raises DamagedFileError: what such a run needs is not known
    files = [run.path / names.RECORD, run.path / names.CHANGES, run.path / names.PREPARED_DATA]
    files += [run.attempt_dir(attempt) / names.ATTEMPT for attempt in run.attempts()]
    return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())


def _old_entries(folder: Path, seconds: float = YOUNG_SECONDS) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > seconds:
                yield path


def _fetched(store: Path, texts: Sequence[str]) -> Iterator[Garbage]:
    """Yield the fetched versions that no run names, and the contents that only they have."""
    needed: set[int] = set()  # inodes of contents; versions hold links to them
    for folder in sorted(store.glob("[!.]*/*/[!.]*@*")):  # KIND/ORG/NAME@COMMIT
        is_old = time.time() - folder.lstat().st_mtime > YOUNG_SECONDS
        if is_old and not any(folder.name in text for text in texts):
            yield Garbage("fetched", folder, 0, "no run uses this version; it can be fetched again")
        else:
            needed |= {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    for blob in _old_entries(store / "blobs"):
        if blob.stat().st_ino not in needed:
            yield Garbage("fetched", blob, blob.stat().st_size, "content of versions that no run uses, or of an unfinished fetch")


def _work_folders(runs: Sequence[RunDir]) -> Iterator[Garbage]:
    """Yield work folders of data sets that no live run makes: the runs that began them have ended without finishing."""
    live: dict[Path, bool] = {}
    for run in runs:
        output = (run.record.get("config") or {}).get("output")
        if isinstance(output, str) and Path(output).is_absolute():
            live[Path(output)] = live.get(Path(output), False) or not is_final(run)
    for output, in_use in live.items():
        if not in_use and (output / WORK).is_dir():
            reason = "the runs that make this data set have ended; another run would start it over"
            yield Garbage("work", output / WORK, disk_bytes(output / WORK), reason)
