"""The page about runs, served from a thread of the test; and runs to look at."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ropewalk.cluster.local_access import LocalAccess
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import MetricLog, metric_line
from ropewalk.jobs.results.readable import write_table
from ropewalk.jobs.runs.ui.server import start

EVIL = "<img src=x onerror=\"document.title='owned'\"><b id=owned>"


@contextmanager
def served() -> Iterator[LocalAccess]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner, access = asyncio.run_coroutine_threadsafe(start(0), loop).result()
    try:
        yield access
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def client(access: LocalAccess) -> Iterator[httpx.Client]:
    """A client that has opened the link."""
    with httpx.Client(base_url=access.address, follow_redirects=True, timeout=60) as opened:
        assert opened.get(access.link()).status_code == 200
        yield opened


def make_run(root: Path, name: str, losses: Sequence[float], /, *, ended: bool = True, **config: Any) -> RunDir:
    """A training with this loss at each step, with samples, and a hang if it goes on."""
    job = {"job": "pretrain", "cluster": "slow", "engine": "ranks", "resources": {}, "created": 1000.0}
    record = {**job, "config": {"steps": len(losses), **config}}
    run = RunDir.create(name, record, root)
    attempt = run.begin_attempt(handle="fake:1")
    MetricLog(JobContext(run=run, attempt=attempt))
    lines = [metric_line(attempt, step, {"train/loss": loss}, 1000.0 + step) for step, loss in enumerate(losses, 1)]
    append_lines(run.metrics, lines)
    write_table(run.path, "samples", ["step", "prompt", "text"], [[len(losses), "Once", f"upon {EVIL}"]])
    (run.path / "stacks/one").mkdir(parents=True)
    (run.path / "stacks/one/node-0.txt").write_text("rank 0: in all_reduce\n")
    hung = {"rank": 0, "state": "waits", "phase": "step", "where": "all_reduce (x.py:3)"}
    run.event("ranks_hung", attempt=1, group=1, node=0, step=3, seconds=20.0, ranks=[hung], stacks="stacks/one")
    if ended:
        run.write_outcome(attempt, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", started=1000.0, ended=1100.0))
    return run
