"""False alarms of the hang detection in runs on a machine that is disturbed in many ways.

    python -m tests.benchmarks.bench_false_alarms [--runs 300] [--at-once 12] [--steps 500]

Real runs of the local backend with one or two ranks, whose program reports steps of 20 to 300 ms as a training loop does: it
reads batches from a process, computes, joins a collective, writes a log and checkpoints. Each run lies on a disk of its own (a
loop device) and in cgroups of its own, and is disturbed three times, at random and possibly at once: its CPU quota is a twentieth
of a core for 10 s, its memory limit is below what it uses for 10 s, its disk stands still for 10 s, or all its processes, the
agent's too, are frozen for 5 s. The first step of half of the runs waits 20 s for a compiler. Needs root and the cgroup
controllers of version 1. Prints one JSON object; the exit code is 1 if there was an alarm.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.config import Resources
from ropewalk.cluster.process.fork_server import FORK_SERVER_VARIABLE, start_fork_server
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, write_atomically
from ropewalk.cluster.run.phase_clock import Phase
from ropewalk.cluster.spec import RunState

CONTROLLERS = Path("/sys/fs/cgroup")
SECONDS = {"quota": 10.0, "memory": 10.0, "disk": 10.0, "freeze": 5.0}
DISTURBANCES = 3  # of each run
COMPUTED = 0.05  # share of a step that needs a core; in the rest it sleeps
COMPILE_SECONDS = 20.0
MAPPED_BYTES, DISK_MIB, CHECKPOINT_BYTES = 48 << 20, 160, 1 << 20
MEMORY_ROOMS = tuple(size << 20 for size in (16, 24, 32))  # more than what no file backs; the mapped files need up to 96 MiB
RUN_SECONDS = 900.0
SUBMITTING = threading.Lock()  # the fork server is named by the environment


# --- the program


def main(context: JobContext) -> dict[str, object]:
    """Report steps as a training loop does."""
    import torch
    import torch.distributed as dist

    config = context.run.record["config"]
    heart, random_ = context.heart, random.Random(config["seed"] * 2 + context.rank)
    heart.begin(patience_seconds=600)
    dist.init_process_group("gloo")
    pages = np.memmap(context.run.path / f"pages-{context.rank}", np.uint8, "w+", shape=(MAPPED_BYTES,))
    mine, theirs = multiprocessing.Pipe()
    loader = multiprocessing.get_context("fork").Process(target=_load, args=(theirs,), daemon=True)
    loader.start()
    for step in range(config["steps"]):
        heart.beat(Phase.DATA, step)
        mine.send(random_.randrange(MAPPED_BYTES))
        batch = mine.recv()
        heart.beat(Phase.STEP, step)
        if step == 0 and config["compile"] and context.rank == 0:
            subprocess.run(["sleep", str(COMPILE_SECONDS)], check=True)
        _compute(config["step_seconds"] * random_.uniform(0.5, 1.5), pages, batch)
        dist.all_reduce(torch.ones(1))
        if step % 10 == 0 and context.rank == 0:
            append_line(context.run.metrics, {"step": step, "attempt": context.attempt, "time": time.time()})
        if step % 50 == 49:
            heart.beat(Phase.CHECKPOINT, step)
            write_atomically(context.run.path / f"saved-{context.rank}", os.urandom(CHECKPOINT_BYTES))
    heart.beat(Phase.LEAVING, config["steps"])
    loader.kill()
    dist.destroy_process_group()
    return {"step": config["steps"]}


def _load(pipe: Connection) -> None:
    while True:
        pipe.send(pipe.recv() // 2)


def _compute(seconds: float, pages: np.ndarray[Any, Any], batch: int) -> None:
    until = time.thread_time() + COMPUTED * seconds
    while time.thread_time() < until:
        batch = (batch + 4096 * 997) % MAPPED_BYTES
        pages[batch] += 1
    time.sleep((1 - COMPUTED) * seconds)


# --- disturbances


class Machine:
    """Control groups and a disk of one run at a time."""

    def __init__(self, folder: Path) -> None:
        self.disk, self._image = folder / "disk", folder / "image"
        self._groups = {name: CONTROLLERS / name / _group(name) / f"bench-{os.getpid()}-{folder.name}" for name in CONTROLLED}
        for group in self._groups.values():
            group.mkdir()
        (self._groups["memory"] / "memory.oom_control").write_text("1")  # whoever needs memory waits for it
        with self._image.open("wb") as stream:
            stream.truncate(DISK_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", str(self._image)], check=True)
        self.disk.mkdir()
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.disk)], check=True)

    def hold(self, pid: int) -> None:
        for group in self._groups.values():
            (group / "cgroup.procs").write_text(str(pid))

    @contextmanager
    def quota(self) -> Iterator[None]:
        group = self._groups["cpu"]
        (group / "cpu.cfs_period_us").write_text("100000")
        with self._changed(group / "cpu.cfs_quota_us", "5000", "-1"):
            yield

    @contextmanager
    def memory(self) -> Iterator[None]:
        group = self._groups["memory"]
        for room in MEMORY_ROOMS:
            with suppress(OSError):  # more is in use than the kernel can free
                (group / "memory.force_empty").write_text("0")
                limit = int((group / "memory.usage_in_bytes").read_text()) + room
                with self._changed(group / "memory.limit_in_bytes", str(limit), "-1"):
                    yield
                return
        yield

    @contextmanager
    def freeze(self) -> Iterator[None]:
        with self._changed(self._groups["freezer"] / "freezer.state", "FROZEN", "THAWED"):
            yield

    @contextmanager
    def stand_still(self) -> Iterator[None]:
        subprocess.run(["fsfreeze", "--freeze", str(self.disk)], check=True)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.disk)], check=True)

    @staticmethod
    @contextmanager
    def _changed(file: Path, value: str, original: str) -> Iterator[None]:
        file.write_text(value)
        try:
            yield
        finally:
            file.write_text(original)

    def close(self) -> None:
        for process in map(int, (self._groups["freezer"] / "cgroup.procs").read_text().split()):
            os.kill(process, signal.SIGKILL)
        _retry(lambda: subprocess.run(["umount", str(self.disk)], check=True, stderr=subprocess.DEVNULL))
        for group in self._groups.values():
            _retry(group.rmdir)


CONTROLLED = ("cpu", "freezer", "memory")


def _group(controller: str) -> str:
    """This process's own group of a controller."""
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    return next(path for _, names, path in lines if controller in names.split(",")).strip("/")


def _retry(action: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            action()
            return
        except (OSError, subprocess.CalledProcessError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def obstacle() -> str:
    """Return the reason why this machine cannot be disturbed, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    for name in CONTROLLED:
        if not (CONTROLLERS / name / "cgroup.procs").exists():
            return f"needs the cgroup controller {name} of version 1 in {CONTROLLERS / name}"
    missing = [name for name in ("mkfs.ext4", "mount", "fsfreeze") if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


# --- runs


def disturbed_run(machine: Machine, address: Path, seed: int, steps: int) -> dict[str, Any]:
    """One run: how it ended, and what was reported of its ranks."""
    random_ = random.Random(seed)
    step_seconds = math.exp(random_.uniform(math.log(0.02), math.log(0.3)))
    resources = Resources.model_validate({"nodes": 1, "ranks_per_node": 1 + seed % 2})
    config = {"seed": seed, "steps": steps, "step_seconds": step_seconds, "compile": random_.random() < 0.5}
    record = {
        "job": "toy",
        "entry": f"{__spec__.name}:main",
        "engine": "ranks",
        "preload": ["torch", "numpy"],
        "sidecars": [],
        "config": config,
        "resources": resources.model_dump(mode="json"),
    }
    run = RunDir.create("disturbed", record, machine.disk / "runs")
    with SUBMITTING:
        os.environ[FORK_SERVER_VARIABLE] = str(address)
        LocalBackend(Profile(name="local", backend="local")).submit(run, resources, ())
    kinds = [random_.choice(list(SECONDS)) for _ in range(DISTURBANCES)]
    began = time.monotonic()
    _reach_first_step(run)
    with ThreadPoolExecutor(DISTURBANCES) as pool:
        starts = [random_.uniform(0, 0.8 * steps * step_seconds) for _ in kinds]
        locks = {kind: threading.Lock() for kind in kinds}
        list(pool.map(lambda kind, start: _disturb(machine, kind, start, locks[kind]), kinds, starts))
    while (outcome := run.last_outcome()) is None and time.monotonic() - began < RUN_SECONDS:
        time.sleep(0.5)
    events = [event for event in run.read_events() if event["event"] in {"ranks_hung", "ranks_slow", "rank_lost"}]
    times = [line["time"] for line in run.read_metrics()]
    result = {
        "seed": seed,
        "state": outcome.state.value if outcome else "not finished",
        "cause": outcome.cause if outcome else "",
        "disturbances": kinds,
        "longest_ten_steps": max((b - a for a, b in pairwise(times)), default=0.0),
        "events": events,
    }
    shutil.rmtree(run.path)
    return result


def _reach_first_step(run: RunDir) -> None:
    """Disturb the start, too: half of the runs wait for a compiler then."""
    _retry((run.log_dir(1) / "rank-0.log").stat, RUN_SECONDS)


def _disturb(machine: Machine, kind: str, start: float, lock: threading.Lock) -> None:
    time.sleep(start)
    method = {"quota": machine.quota, "memory": machine.memory, "disk": machine.stand_still, "freeze": machine.freeze}[kind]
    with lock, method():
        time.sleep(SECONDS[kind])


def series(folder: Path, seeds: Iterator[int], steps: int) -> Iterator[dict[str, Any]]:
    """One run after the other."""
    folder.mkdir()
    machine = Machine(folder)
    server = start_fork_server(folder / "s", ["torch", "numpy", "ropewalk.cluster.engines.ranks", __spec__.name], folder / "log")
    machine.hold(server.pid)
    _retry((folder / "s").stat)
    try:
        for seed in seeds:
            yield disturbed_run(machine, folder / "s", seed, steps)
    finally:
        server.kill()
        server.wait()
        machine.close()


def measure_all() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=12)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if reason := obstacle():
        print(json.dumps({"skipped": reason}))
        return 0
    seeds = iter(range(arguments.first_seed, arguments.first_seed + arguments.runs))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fa") as folder, ThreadPoolExecutor(arguments.at_once) as pool:

        def work(number: int) -> None:
            for result in series(Path(folder) / str(number), seeds, arguments.steps):
                results.append(result)
                print(f"{len(results)}: {json.dumps(result)}", file=sys.stderr, flush=True)

        working = [pool.submit(work, number) for number in range(min(arguments.at_once, arguments.runs))]
        try:
            for future in working:
                future.result()
        except KeyboardInterrupt:
            list(seeds)  # the runs under way are the last
    events = Counter(event["event"] for result in results for event in result["events"])
    alarms = [event for result in results for event in result["events"] if event["event"] == "ranks_hung"]
    report = {
        "runs": len(results),
        "steps": arguments.steps,
        "false_alarms": len(alarms),
        "alarms": alarms,
        "slow_reported": events["ranks_slow"],
        "ranks_lost": events["rank_lost"],
        "not_succeeded": [result for result in results if result["state"] != RunState.SUCCEEDED.value],
        "disturbances": Counter(kind for result in results for kind in result["disturbances"]),
        "longest_standstill_seconds": max(result["longest_ten_steps"] for result in results),
    }
    print(json.dumps(report, indent=1))
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(measure_all())
