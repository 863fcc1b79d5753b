"""Runs that were submitted through ssh, with their clusters, and submissions that were not answered; in the user's home."""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.names import RECORD

STATE_VARIABLE = "XDG_STATE_HOME"


def state_dir() -> Path:
    """Return this user's folder of state: $XDG_STATE_HOME/ropewalk, else ~/.local/state/ropewalk."""
    return Path(os.environ.get(STATE_VARIABLE) or os.path.expanduser("~/.local/state")) / "ropewalk"


def remember(run: str, cluster: str) -> None:
    """Record that a run is on a cluster."""
    folder = state_dir() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / run).write_text(cluster)


def forget(run: str) -> None:
    """Forget that a run is on a cluster that is reached through ssh."""
    (state_dir() / "runs" / run).unlink(missing_ok=True)


def known_runs() -> list[str]:
    """Return the ids of the runs that were submitted from this machine."""
    folder = state_dir() / "runs"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def known_clusters() -> list[str]:
    """Return the clusters to which runs were submitted from this machine through ssh."""
    return sorted({cluster for run in known_runs() if (cluster := cluster_of(run))})


def print_elsewhere(command: str) -> None:
    """Print which command lists the runs that were submitted to clusters through ssh, which are not on this machine."""
    if clusters := known_clusters():
        commands = ", ".join(f"`ropewalk {command} --on {cluster}`" for cluster in clusters)
        print(f"runs that were submitted from here: {commands}")


def cluster_of(ref: str) -> str | None:
    """Return the cluster of the known runs whose ids begin with `ref`; None if there are none. Raises ConfigError for several.

    `latest` is the newest of them, unless a run on this machine is newer.
    """
    folder = state_dir() / "runs"
    if not ref or "/" in ref or not folder.is_dir():
        return None
    if ref == "latest" and (submissions := [*folder.iterdir()]):
        from ropewalk.jobs.runs.show.status import newest_first

        submitted = max(submissions, key=_changed)
        here = next(newest_first(), None)
        return submitted.read_text() if here is None or _changed(here.path / RECORD) < _changed(submitted) else None
    if (folder / ref).is_file():
        return (folder / ref).read_text()
    clusters = {(folder / name).read_text() for name in os.listdir(folder) if name.startswith(ref)}
    if len(clusters) > 1:
        raise ConfigError(f"run {ref!r} is ambiguous: on {' and '.join(sorted(clusters))}; use a longer prefix of its id")
    return clusters.pop() if clusters else None


def _changed(path: Path) -> float:
    return path.stat().st_mtime


@contextmanager
def submission_id(cluster: str, arguments: Sequence[str]) -> Iterator[str]:
    """Yield the id of a submission, the same for the same command in the same directory until the block ends without error."""
    identity = json.dumps([cluster, os.getcwd(), list(arguments)])
    folder = state_dir() / "submissions"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, hashlib.sha256(identity.encode()).hexdigest()[:32]) as (path, stream):
        submission = stream.read()
        if not submission:
            submission = secrets.token_hex(16)
            stream.write(submission)
            stream.flush()
            os.fsync(stream.fileno())
        yield submission
        path.unlink()


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[tuple[Path, IO[str]]]:
    """Open the first file NAME-0, NAME-1, ... that no command uses, so that equal commands side by side have ids of their own."""
    for number in count():
        path = folder / f"{name}-{number}"
        with path.open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not os.fstat(stream.fileno()).st_nlink:  # removed by the command that had it
                continue
            stream.seek(0)
            yield path, stream
            return
