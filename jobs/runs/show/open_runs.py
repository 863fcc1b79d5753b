"""Fast listing of the runs that have not ended, among many that have.

Runs that have ended for good are noted in a cache of this user, each with the number of its last attempt. A note holds as long as
the run has no later attempt, which every listing checks. Without the cache a listing takes longer and returns the same.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import orjson

from ropewalk.cluster.run.directory import RunDir, ids_under, runs_by_age
from ropewalk.cluster.run.file_systems import mount_of
from ropewalk.cluster.run.files import cache_dir, write_atomically
from ropewalk.cluster.run.names import ATTEMPTS, OUTCOME, SUCCESSOR
from ropewalk.cluster.run.succession import read_mark
from ropewalk.cluster.spec import RunState

FEW = 100  # new notes that are not worth writing the cache
SETTLED_SECONDS = 60.0  # an outcome reported by the scheduler may be replaced by the run's own
THREADS = 8  # a network file system answers several requests at once
_FINAL = frozenset(state.value for state in RunState if state.final)


def open_runs(roots: Iterable[Path]) -> tuple[list[RunDir], int]:
    """Return the runs that may not have ended, oldest first under each root, and the number of all others.

    Runs that have ended in the last minute and runs with damaged files are included: check `final_outcome`.
    """
    runs, num_others = list[RunDir](), 0
    for root in roots:
        ids = ids_under(root)
        noted = _noted(root, ids)
        runs += runs_by_age(root, [name for name in ids if name not in noted])
        num_others += len(noted)
    return runs, num_others


def _noted(root: Path, ids: Sequence[str]) -> Mapping[str, int]:
    """Return the last attempts of runs that have ended, by id, from the cache and from the runs; update the cache."""
    path, folder = _cache_file(root), str(root)
    cached = _read(path)
    shared, before = mount_of(root).shared, time.time() - SETTLED_SECONDS

    later = {number: _folder(number + 1) for number in set(cached.values())}

    def check(part: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        confirmed = {
            name: number
            for name in part
            if (number := cached.get(name)) and not os.access(f"{folder}/{name}/{later[number]}", os.F_OK)
        }
        fresh = {name: _ended_attempt(f"{folder}/{name}", before) for name in part if name not in confirmed}
        fresh = {name: number for name, number in fresh.items() if number}
        if shared:  # the name of a later attempt may be missing for a minute, but not the mark in the older one
            for name, number in [*confirmed.items(), *fresh.items()]:
                if read_mark(Path(f"{folder}/{name}/{_folder(number)}/{SUCCESSOR}")):
                    confirmed.pop(name, None)
                    fresh.pop(name, None)
        return confirmed, fresh

    noted, num_fresh = dict[str, int](), 0
    with ThreadPoolExecutor(THREADS) as pool:
        for confirmed, fresh in pool.map(check, [ids[start::THREADS] for start in range(THREADS)]):
            noted |= confirmed
            noted |= fresh
            num_fresh += len(fresh)
    if num_fresh >= FEW:
        with suppress(OSError):  # a disk is full, or the home directory is read-only
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, orjson.dumps(noted), durable=False, mode=0o600)
    return noted


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


def _read(path: Path) -> dict[str, int]:
    try:
        cached = orjson.loads(path.read_bytes())
    except (OSError, ValueError):  # none yet, or damaged by a power cut
        return {}
    return cached if isinstance(cached, dict) and set(map(type, cached.values())) <= {int} else {}
