"""Samples of a rank that makes no progress, and the activity that two of them show: computing, sleeping, waiting for others."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from ropewalk.cluster.engines.stacks import Stack, take_stack
from ropewalk.cluster.gpus import gpu_percent

SPY_SECONDS = 5.0  # for one stack, on a busy machine
# Shares of a core. Idle ranks use less than a tenth of this, with their threads for heartbeats, data and connections.
MAIN_SHARE, TREE_SHARE = 0.02, 0.05
_MOST_SPIES = 4  # py-spy processes at a time


class Activity(StrEnum):
    """Activity of a rank between two samples, as a phrase for people."""

    COMPUTES = "computes"
    USES_GPU = "uses its GPU"
    READS_DISK = "waits for a disk or for memory"
    MOVES = "moves from one place of its program to another"
    UNKNOWN = "does something that cannot be observed"
    WAITS = "waits for other ranks"
    SLEEPS = "sleeps"

    @property
    def idle(self) -> bool:
        return self in (Activity.WAITS, Activity.SLEEPS)


@dataclass(frozen=True)
class ProcessSample:
    """State of a process at one moment."""

    status: str  # of the main thread, as psutil names it
    main_seconds: float  # CPU time of the main thread, and its time in the run queue
    cpu_seconds: float  # CPU time of all threads
    stack: Stack


@dataclass(frozen=True)
class RankSample:
    """State of a rank and its descendants at one moment."""

    time: float  # monotonic seconds
    rank: ProcessSample
    children: Mapping[int, ProcessSample]  # by process id
    gpu_percent: float | None = 0.0  # use of its GPU; None if it cannot be measured


@dataclass(frozen=True)
class RankProcess:
    """A rank on this node: its process, and the means by which its agent observes it."""

    pid: int
    heartbeat: Path
    dumps: Path  # file of stacks that the process writes by itself
    gpu: str | None = None  # as CUDA_VISIBLE_DEVICES names it


def stop_marker(pid: int) -> str | None:
    """Return a text that changes if a stopped process runs in between, or None if the process is not stopped by a signal."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] != "T":
            return None
        return Path(f"/proc/{pid}/schedstat").read_text()
    except OSError:
        return None


def take_samples(ranks: Mapping[int, RankProcess]) -> dict[int, RankSample]:
    """Sample the ranks of this node. Ranks that are gone are left out."""
    with ThreadPoolExecutor(_MOST_SPIES) as pool:
        return {rank: sample for rank, process in ranks.items() if (sample := _sample(process, pool)) is not None}


def _sample(rank: RankProcess, pool: ThreadPoolExecutor) -> RankSample | None:
    try:
        main = psutil.Process(rank.pid)
        processes = [main, *main.children(recursive=True)]
        sampled = list(pool.map(lambda process: _sample_process(process, rank.dumps if process is main else None), processes))
    except psutil.Error:
        return None
    if sampled[0] is None:
        return None
    children = {process.pid: item for process, item in zip(processes[1:], sampled[1:], strict=True) if item is not None}
    return RankSample(time.monotonic(), sampled[0], children, gpu_percent(rank.gpu) if rank.gpu is not None else 0.0)


def _sample_process(process: psutil.Process, dumps: Path | None) -> ProcessSample | None:
    try:
        stack = take_stack(process.pid, dumps, SPY_SECONDS)
        times = process.cpu_times()
        return ProcessSample(str(process.status()), _main_seconds(process.pid), times.user + times.system, stack)
    except psutil.Error:
        return None


def _main_seconds(pid: int) -> float:
    with suppress(OSError, ValueError):  # the kernel does not count, or the process has ended
        running, queued, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        return (int(running) + int(queued)) / 1e9
    return 0.0


def activity(before: RankSample, now: RankSample) -> Activity:
    """Return the activity of a rank between two samples.

    A wait for other ranks may use CPU and GPU time, since NCCL spins. A rank that sleeps while a child computes computes.
    """
    rank, seconds = now.rank, now.time - before.time
    if rank.status == psutil.STATUS_DISK_SLEEP:
        return Activity.READS_DISK
    held = rank.status == psutil.STATUS_TRACING_STOP  # by a debugger
    if held or not (rank.stack.readable and before.rank.stack.readable):
        return Activity.UNKNOWN
    if rank.stack.waits_for_ranks and rank.stack.main_frames == before.rank.stack.main_frames:
        return Activity.WAITS
    processes = [(before.rank, rank), *((before.children.get(pid), child) for pid, child in now.children.items())]
    pairs = [(old, new) for old, new in processes if old is not None]
    if len(pairs) < len(processes) or any(old.stack.frames != new.stack.frames for old, new in pairs):
        return Activity.MOVES
    if any(new.status == psutil.STATUS_DISK_SLEEP for _, new in pairs):
        return Activity.READS_DISK
    running = any(new.status == psutil.STATUS_RUNNING for _, new in pairs)
    main_share = max(new.main_seconds - old.main_seconds for old, new in pairs) / seconds
    tree_share = sum(new.cpu_seconds - old.cpu_seconds for old, new in pairs) / seconds
    if running or main_share > MAIN_SHARE or tree_share > TREE_SHARE:
        return Activity.COMPUTES
    if now.gpu_percent is None:
        return Activity.UNKNOWN
    return Activity.USES_GPU if now.gpu_percent > 0 else Activity.SLEEPS
