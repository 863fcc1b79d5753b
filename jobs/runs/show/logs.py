"""The logs of a run, of job scripts, nodes, ranks, Ray and arrays, over all attempts; each line begins with its origin."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds

POLL_SECONDS = 0.2
KINDS = ("batch", "store", "node", "ray", "rank")  # a process stands before those that it starts
ARRAY_ENDING = "_0_log.out"  # submitit's: JOB_ELEMENT_0_log.out


def log_files(run: RunDir, rank: int | None = None, node: int | None = None) -> list[tuple[str, Path]]:
    """List (prefix, path) of the logs, oldest attempt first, or only those of one rank or node.

    A requeued job appends to the batch log of the attempt that it was submitted with.
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


def refuse_absent(run: RunDir, rank: int | None, node: int | None) -> None:
    """Raise ConfigError for the logs of a rank or node that the run never had, where it has logs of others."""
    for kind, number in (("rank", rank), ("node", node)):
        names = {path.stem for attempt in run.attempts() for path in run.log_dir(attempt).glob(f"{kind}-*.log")}
        known = sorted(int(name.partition("-")[2]) for name in names if name.partition("-")[2].isdigit())
        if number is not None and known and number not in known:
            there = f"logs of {kind}s {known[0]} to {known[-1]}" if len(known) > 1 else f"one of {kind} {known[0]} alone"
            raise ConfigError(f"--{kind} {number}: {run.id} has no log of it; it has {there}")


def _array_files(run: RunDir, attempt: int) -> list[tuple[str, Path]]:
    """The logs of array tasks, pass by pass, each with the prefix `ATTEMPT.array-PASS-JOB_TASK`."""
    folder = run.attempt_dir(attempt) / "array"
    files = sorted(
        folder.glob(f"*/*{ARRAY_ENDING}"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", f"{path.parent.name} {path.name}")],
    )
    return [(f"{attempt}.array-{path.parent.name}-{path.name.removesuffix(ARRAY_ENDING)}", path) for path in files]


def read_logs(run: RunDir, rank: int | None = None, node: int | None = None) -> Iterator[str]:
    """Read every line, each with a prefix such as `1.rank-0 |`."""
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
    """Read every line, and then new ones until the run is over. No line is cut in two, lost, or read twice."""
    offsets: dict[Path, int] = {}
    pause_seconds = poll_seconds(run.path)
    while True:
        last_round = over()
        if last_round:
            sleep(POLL_SECONDS)  # the process that wrote the outcome may write a last line
            for attempt in run.attempts():
                list_afresh(run.log_dir(attempt))  # the log that another machine began a moment ago
        for prefix, path in log_files(run, rank, node):
            for line in _new_lines(path, offsets, to_the_end=last_round):
                yield f"{prefix} | {line.rstrip()}"
        if last_round:
            return
        sleep(pause_seconds)


def _new_lines(path: Path, offsets: dict[Path, int], *, to_the_end: bool) -> list[str]:
    """Read the lines that were completed since the last look; `to_the_end` takes an incomplete last line too."""
    known = offsets.get(path, 0)
    with path.open("rb") as stream:  # without opening it, a client of NFS tells how long it was a minute ago
        if stream.seek(0, os.SEEK_END) <= known:
            return []
        stream.seek(known)
        raw = stream.read()
    whole = raw if to_the_end else raw[: raw.rfind(b"\n") + 1]
    offsets[path] = known + len(whole)
    return whole.decode(errors="replace").removesuffix("\n").split("\n") if whole else []
