"""Logs of a run (job scripts, nodes, ranks, Ray, arrays) over all attempts; each line is prefixed with its origin."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import list_afresh
from ropewalk.cluster.process.log_rotation import predecessor
from ropewalk.cluster.process.output import RANK_LINE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds

POLL_SECONDS = 0.2
SHARED = "ranks"  # log of the ranks of a node in a large group
KINDS = ("batch", "groups", "node", "ray", "rank", SHARED)  # parents before their children
LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} rank 0 [A-Z]+ ropewalk\.")  # by `configure_logging` in a rank
ARRAY_ENDING = "_0_log.out"  # submitit's: JOB_ELEMENT_0_log.out


class LogLine(NamedTuple):
    """A line of a log with its origin; as text with a prefix such as `1.rank-0 |`."""

    attempt: int
    source: str  # rank-0, node-1, batch, ...
    text: str

    def __str__(self) -> str:
        return f"{self.attempt}.{self.source} | {self.text}"


def log_files(run: RunDir, rank: int | None = None, node: int | None = None) -> list[tuple[str, Path]]:
    """List (prefix, path) of the logs, oldest attempt first, or only those of one node, or that may have lines of one rank.

    A requeued job appends to the batch log of the attempt that it was submitted with.
    """
    selection = {"rank": rank, "node": node, SHARED: rank or None}  # rank 0 has a log of its own
    is_selective = any(number is not None for number in selection.values())
    logs = []
    for attempt in run.attempts():
        names: dict[str, list[tuple[int, Path]]] = {}
        for path in run.log_dir(attempt).glob("*.log"):
            kind, _, number = path.stem.partition("-")
            if kind in KINDS and (number.isdigit() or not number):
                names.setdefault(kind, []).append((int(number or 0), path))
        for kind in KINDS:
            wanted = selection.get(kind)
            if not is_selective or wanted is not None:
                files = sorted(names.get(kind, []))
                wanted = None if kind == SHARED else wanted
                logs += [(f"{attempt}.{path.stem}", path) for number, path in files if wanted is None or number == wanted]
        if not is_selective:
            logs += _array_files(run, attempt)
    return logs


def refuse_absent(run: RunDir, rank: int | None, node: int | None) -> None:
    """Raise ConfigError if the run has logs of ranks or nodes, but none of this one."""
    for kind, number in (("rank", rank), ("node", node)):
        names = {path.stem for attempt in run.attempts() for path in run.log_dir(attempt).glob(f"{kind}-*.log")}
        numbers = sorted(int(name.partition("-")[2]) for name in names if name.partition("-")[2].isdigit())
        has_shared = kind == "rank" and any(prefix.partition(".")[2].startswith(SHARED) for prefix, _ in log_files(run))
        if number is not None and numbers and number not in numbers and not has_shared:
            existing = f"{kind}s {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{kind} {numbers[0]}"
            raise ConfigError(f"--{kind} {number}: {run.id} has no such log; it has logs of {existing}")


def _array_files(run: RunDir, attempt: int) -> list[tuple[str, Path]]:
    """List (prefix, path) of the logs of array tasks by pass, with prefixes `ATTEMPT.array-PASS-JOB_TASK`."""
    folder = run.attempt_dir(attempt) / "array"
    files = sorted(
        folder.glob(f"*/*{ARRAY_ENDING}"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", f"{path.parent.name} {path.name}")],
    )
    return [(f"{attempt}.array-{path.parent.name}-{path.name.removesuffix(ARRAY_ENDING)}", path) for path in files]


def _shown(prefix: str, lines: Iterable[str], rank: int | None) -> Iterator[LogLine]:
    """Yield lines with their origin: in a log that ranks share each line's own, and only those of `rank` if it is given."""
    attempt, _, name = prefix.partition(".")
    is_shared = name.startswith(f"{SHARED}-")
    for line in lines:
        owner = RANK_LINE.match(line) if is_shared else None
        if not is_shared or rank is None or (owner and int(owner[1]) == rank):
            yield LogLine(int(attempt), f"rank-{owner[1]}" if owner else name, line[owner.end() if owner else 0 :].rstrip())


def read_logs(run: RunDir, rank: int | None = None, node: int | None = None) -> Iterator[LogLine]:
    """Yield every line."""
    for prefix, path in log_files(run, rank, node):
        for part in (predecessor(path), path):
            if part.exists():
                with part.open(errors="replace", newline="\n") as stream:
                    yield from _shown(prefix, stream, rank)


def follow_logs(
    run: RunDir,
    over: Callable[[], bool],
    rank: int | None = None,
    node: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[LogLine]:
    """Yield every line, then new lines until the run has ended. No line is split, lost or repeated."""
    offsets: dict[Path, int] = {}
    pause_seconds = poll_seconds(run.path)
    while True:
        last_round = over()
        if last_round:
            sleep(POLL_SECONDS)  # the process that wrote the outcome may write a last line
            for attempt in run.attempts():
                list_afresh(run.log_dir(attempt))  # to see a log that another machine has just started
        for prefix, path in log_files(run, rank, node):
            yield from _shown(prefix, _new_lines(path, offsets, to_the_end=last_round), rank)
        if last_round:
            return
        sleep(pause_seconds)


class ProgramOutput:
    """Output of a user's program: rank 0's lines, without those that ropewalk logs there. `skip`: not what is there already."""

    def __init__(self, run: RunDir, *, skip: bool) -> None:
        self._run, self._offsets = run, dict[Path, int]()
        if skip:
            self.new_lines(to_the_end=True)

    def new_lines(self, *, to_the_end: bool) -> list[str]:
        """Return the lines completed since the last call; `to_the_end` includes an incomplete last line."""
        paths = [path for _, path in log_files(self._run, rank=0)]
        lines = [line for path in paths for line in _new_lines(path, self._offsets, to_the_end=to_the_end)]
        return [line for line in lines if not LOGGED.match(line)]


def _new_lines(path: Path, offsets: dict[Path, int], *, to_the_end: bool) -> list[str]:
    """Return the lines completed since the last call; `to_the_end` includes an incomplete last line.

    A negative offset is a position in the predecessor of a rotated file, counted from its end.
    """
    offset, rotated, raw = offsets.get(path), predecessor(path), b""
    with path.open("rb") as stream:  # an NFS client returns the current size only for an open file
        size = stream.seek(0, os.SEEK_END)
        if (offset is None or size < offset) and rotated.exists():
            offset = (offset or 0) - rotated.stat().st_size
        offset = offset or 0
        if size <= offset:
            return []
        if offset < 0:
            with rotated.open("rb") as earlier:
                earlier.seek(offset, os.SEEK_END)
                raw = earlier.read()
        stream.seek(max(offset, 0))
        raw += stream.read()
    whole = raw if to_the_end else raw[: raw.rfind(b"\n") + 1]
    offsets[path] = offset + len(whole)
    return whole.decode(errors="replace").removesuffix("\n").split("\n") if whole else []
