"""The logs of a run: the job script, every node and rank, Ray, arrays, across attempts, each line with its origin."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.fresh_reads import list_afresh
from cluster.run.directory import RunDir
from cluster.run.file_systems import look_seconds

POLL_SECONDS = 0.2
KINDS = ("batch", "store", "node", "ray", "rank")  # whoever started the others comes first
ARRAY_ENDING = "_0_log.out"  # submitit's: JOB_ELEMENT_0_log.out


def log_files(run: RunDir, rank: int | None = None, node: int | None = None) -> list[tuple[str, Path]]:
    """(prefix, path) of the logs there are, oldest attempt first; of one rank or node if asked.

    A job that is requeued goes on in the batch log of the attempt that it was submitted with.
    """
    asked = {"rank": rank, "node": node}
    chosen = any(number is not None for number in asked.values())
    found = []
    for attempt in run.attempts():
        names: dict[str, list[tuple[int, Path]]] = {}
        for path in run.log_dir(attempt).glob("*.log"):
            kind, _, number = path.stem.partition("-")
            if kind in KINDS and (number.isdigit() or not number):
                names.setdefault(kind, []).append((int(number or 0), path))
        for kind in KINDS:
            wanted = asked.get(kind)
            if not chosen or wanted is not None:
                files = sorted(names.get(kind, []))
                found += [(f"{attempt}.{path.stem}", path) for number, path in files if wanted is None or number == wanted]
        if not chosen:
            found += _array_files(run, attempt)
    return found


def _array_files(run: RunDir, attempt: int) -> list[tuple[str, Path]]:
    """The logs of array tasks, pass by pass, each with the prefix `ATTEMPT.array-PASS-JOB_TASK`."""
    folder = run.attempt_dir(attempt) / "array"
    files = sorted(
        folder.glob(f"*/*{ARRAY_ENDING}"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", f"{path.parent.name} {path.name}")],
    )
    return [(f"{attempt}.array-{path.parent.name}-{path.name.removesuffix(ARRAY_ENDING)}", path) for path in files]


def read_logs(run: RunDir, rank: int | None = None, node: int | None = None) -> Iterator[str]:
    """Every line there is, prefixed `attempt.rank-K |`."""
    for prefix, path in log_files(run, rank, node):
        with path.open(errors="replace", newline="\n") as stream:
            for line in stream:
                yield f"{prefix} | {line.rstrip()}"


def follow_logs(
    run: RunDir,
    over: Callable[[], bool],
    rank: int | None = None,
    node: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """The same, and then what is written until the run is over. No line is cut in two, lost, or told twice."""
    offsets: dict[Path, int] = {}
    pause_seconds = look_seconds(run.path)
    while True:
        last_round = over()
        if last_round:
            sleep(POLL_SECONDS)  # whoever wrote the outcome has a last word
            for attempt in run.attempts():
                list_afresh(run.log_dir(attempt))  # the log that another machine began a moment ago
        for prefix, path in log_files(run, rank, node):
            for line in _new_lines(path, offsets, to_the_end=last_round):
                yield f"{prefix} | {line.rstrip()}"
        if last_round:
            return
        sleep(pause_seconds)


def _new_lines(path: Path, offsets: dict[Path, int], *, to_the_end: bool) -> list[str]:
    """What was written since the last look; of a line that is being written, nothing unless it is the end."""
    known = offsets.get(path, 0)
    with path.open("rb") as stream:  # without opening it, a client of NFS tells how long it was a minute ago
        if stream.seek(0, os.SEEK_END) <= known:
            return []
        stream.seek(known)
        raw = stream.read()
    whole = raw if to_the_end else raw[: raw.rfind(b"\n") + 1]
    offsets[path] = known + len(whole)
    return whole.decode(errors="replace").removesuffix("\n").split("\n") if whole else []
