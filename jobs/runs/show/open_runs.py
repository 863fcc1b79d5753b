"""Fast listing of the runs that have not ended, among many that have.

Runs that have ended for good are noted in a cache of this user, each with the number of its last attempt. A note holds as long as
the run has no later attempt: those are listed beside the runs as they are opened, and each listing also checks some of the notes,
for runs that were copied here. Without the cache a listing takes longer and returns the same.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import orjson

from ropewalk.cluster.run.directory import RunDir, ids_under, runs_by_age
from ropewalk.cluster.run.event_log import EventLog
from ropewalk.cluster.run.file_systems import mount_of
from ropewalk.cluster.run.files import cache_dir, write_atomically
from ropewalk.cluster.run.names import ATTEMPTS, LATER_FOLDER, OUTCOME, SUCCESSOR
from ropewalk.cluster.run.succession import read_mark
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.results.metrics import read_new_lines

FEW = 100  # new notes that are not worth writing the cache
SETTLED_SECONDS = 60.0  # an outcome reported by the scheduler may be replaced by the run's own
CHECK_TURNS = 64  # a listing checks one in so many notes
THREADS = 8  # a network file system answers several requests at once
_FINAL = frozenset(state.value for state in RunState if state.final)


def open_runs(roots: Iterable[Path]) -> tuple[list[RunDir], int]:
    """Return the runs that may not have ended, oldest first under each root, and the number of all others.

    Runs that have ended in the last minute and runs with damaged files are included: check `final_outcome`.
    """
    runs, num_others = list[RunDir](), 0
    for root in roots:
        ids = set(ids_under(root))  # of a hundred thousand runs: operations on whole sets are ten times as fast as loops
        noted = _noted(root, ids)
        runs += runs_by_age(root, ids - noted.keys())
        num_others += len(noted)
    return runs, num_others


def _noted(root: Path, ids: Set[str]) -> Mapping[str, int]:
    """Return the last attempts of runs that have ended, by id, from the cache and from the runs; update the cache."""
    path, folder = _cache_file(root), str(root)
    noted, offsets = _read(path)
    shared, before = mount_of(root).shared, time.time() - SETTLED_SECONDS
    resumed, offsets = _later_attempts(root, offsets, afresh=shared)
    for name in (noted.keys() - ids) | (noted.keys() & resumed):
        del noted[name]
    for name in list(noted)[int(time.time()) % CHECK_TURNS :: CHECK_TURNS]:
        if os.access(f"{folder}/{name}/{_folder(noted[name] + 1)}", os.F_OK):
            del noted[name]

    def check(part: Sequence[str]) -> dict[str, int]:
        ended = {name: number for name in part if (number := _ended_attempt(f"{folder}/{name}", before))}
        # the name of a later attempt may be missing on NFS for a minute, but not the mark in the older one
        return {
            name: n for name, n in ended.items() if not shared or not read_mark(Path(f"{folder}/{name}/{_folder(n)}/{SUCCESSOR}"))
        }

    unknown, num_fresh = list(ids - noted.keys()), len(resumed)
    with ThreadPoolExecutor(THREADS) as pool:
        for ended in pool.map(check, [unknown[start::THREADS] for start in range(THREADS)]):
            noted |= ended
            num_fresh += len(ended)
    if num_fresh >= FEW:
        with suppress(OSError):  # a disk is full, or the home directory is read-only
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, orjson.dumps([noted, offsets]), durable=False, mode=0o600)
    return noted


def _later_attempts(root: Path, offsets: Mapping[str, int], *, afresh: bool) -> tuple[set[str], dict[str, int]]:
    """Return the ids in the lists of later attempts beyond the offsets by file, and the new offsets."""
    resumed, ends = set[str](), dict[str, int]()
    for path in EventLog(root / LATER_FOLDER).files(afresh=afresh):
        lines, ends[path.name] = read_new_lines(path, offsets.get(path.name, 0))
        resumed |= {str(line.get("run")) for line in lines}
    return resumed, ends


@cache
def _folder(number: int) -> str:
    return f"{ATTEMPTS}/{number:04d}"


def _ended_attempt(run: str, before: float) -> int:
    """Return the number of a run's last attempt if the run has ended for good before a time, else 0."""
    number = 1
    while os.access(f"{run}/{_folder(number + 1)}", os.F_OK):
        number += 1
    try:
        outcome = orjson.loads(_read_bytes(f"{run}/{_folder(number)}/{OUTCOME}"))
        return number if outcome["state"] in _FINAL and outcome["ended"] < before else 0
    except (OSError, ValueError, KeyError, TypeError):  # not ended, not a run, or damaged
        return 0


def _read_bytes(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def _cache_file(root: Path) -> Path:
    return cache_dir() / "ended" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"


def _read(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    try:
        noted, offsets = orjson.loads(path.read_bytes())
        if set(map(type, [*noted.values(), *offsets.values()])) <= {int}:
            return noted, offsets
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged by a power cut
        pass
    return {}, {}
