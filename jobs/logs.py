"""The logs of a run: every node and rank, across attempts, each line with its origin."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.run_dir import RunDir

POLL_SECONDS = 0.2


def log_files(run: RunDir, rank: int | None = None, node: int | None = None) -> list[tuple[str, Path]]:
    """(prefix, path) of the logs there are, oldest attempt first; of one rank or node if asked."""
    found = []
    for attempt in run.attempts():
        folder = run.log_dir(attempt)
        names = {path.name: path for path in folder.glob("*.log")} if folder.is_dir() else {}
        for kind, wanted in (("node", node), ("rank", rank)):
            if wanted is None and (rank is not None or node is not None):
                continue
            numbers = sorted(int(n[5:-4]) for n in names if n.startswith(f"{kind}-") and n[5:-4].isdigit())
            found += [
                (f"{attempt}.{kind}-{number}", names[f"{kind}-{number}.log"])
                for number in numbers
                if wanted is None or number == wanted
            ]
    return found


def read_logs(run: RunDir, rank: int | None = None, node: int | None = None) -> Iterator[str]:
    """Every line there is, prefixed `attempt.rank-K |`."""
    for prefix, path in log_files(run, rank, node):
        with path.open(errors="replace") as stream:
            for line in stream:
                yield f"{prefix} | {line.rstrip()}"


def follow_logs(
    run: RunDir,
    over: Callable[[], bool],
    rank: int | None = None,
    node: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """The same, and then what is written until the run is over."""
    offsets: dict[Path, int] = {}
    while True:
        last_round = over()
        for prefix, path in log_files(run, rank, node):
            with path.open("rb") as stream:
                stream.seek(offsets.get(path, 0))
                raw = stream.read()
            whole = raw if last_round else raw[: raw.rfind(b"\n") + 1]
            offsets[path] = offsets.get(path, 0) + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                yield f"{prefix} | {line}"
        if last_round:
            return
        sleep(POLL_SECONDS)
