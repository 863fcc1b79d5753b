"""Activity of ranks, from samples of made processes and of real ones."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.engines.activity import (
    Activity,
    ProcessSample,
    RankProcess,
    RankSample,
    activity,
    stop_marker,
    take_samples,
)
from ropewalk.cluster.engines.stacks import Frame, Stack, Thread
from tests.cluster.conftest import ROOT
from tests.patience import Patience, until

SECONDS = 3.0  # between two samples


def stack(*frames: tuple[str, str, int], others: tuple[tuple[str, str, int], ...] = ()) -> Stack:
    threads = [Thread("MainThread", [Frame(*frame, library=frame[1].startswith("torch")) for frame in frames], main=True)]
    return Stack(1, "sleeping", [*threads, *(Thread("t", [Frame(*frame)]) for frame in others)])


READ = stack(("read", "user/data.py", 7), ("main", "user/train.py", 3))
REDUCE = stack(("all_reduce", "torch/distributed/distributed_c10d.py", 99), ("main", "user/train.py", 5))
SUMS = stack(("read", "ropewalk/sharding/host_copy.py", 35), ("read", "ropewalk/jobs/training/loop/update/step.py", 60))
MULTIPLY = stack(
    ("__call__", "torch/_ops.py", 1), ("dispatch", "torch/distributed/tensor/_dispatch.py", 9), ("main", "user/train.py", 5)
)


def process(where: Stack = READ, status: str = psutil.STATUS_SLEEPING, main: float = 5.0, cpu: float = 9.0) -> ProcessSample:
    return ProcessSample(status, main, cpu, where)


def between(before: ProcessSample, now: ProcessSample, *loader: ProcessSample, gpu: float | None = 0.0) -> Activity:
    """The activity of a rank, of whose only child two samples may be given."""
    earlier, later = ({17: item} for item in loader) if loader else ({}, {})
    return activity(RankSample(100.0, before, earlier), RankSample(100.0 + SECONDS, now, later, gpu))


NO_STACK = Stack(1, "sleeping", text="no stack: py-spy is not installed")
ELSEWHERE = stack(("read", "user/data.py", 8), ("main", "user/train.py", 3))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (process(), process(), Activity.SLEEPS),
        (process(), process(main=5.01, cpu=9.03), Activity.SLEEPS),  # heartbeats and connections
        (process(), process(main=5.2, cpu=9.2), Activity.COMPUTES),
        (process(), process(cpu=9.5), Activity.COMPUTES),  # another thread does
        (process(), process(main=7.9, cpu=9.1), Activity.COMPUTES),  # it waits for a core
        (process(), process(status=psutil.STATUS_RUNNING), Activity.COMPUTES),
        (process(), process(ELSEWHERE), Activity.MOVES),
        (process(), process(status=psutil.STATUS_DISK_SLEEP), Activity.READS_DISK),
        (process(REDUCE), process(REDUCE, status=psutil.STATUS_DISK_SLEEP), Activity.READS_DISK),
        (process(REDUCE), process(REDUCE), Activity.WAITS),
        (process(REDUCE), process(REDUCE, psutil.STATUS_RUNNING, 8.0, 12.0), Activity.WAITS),  # NCCL spins
        (process(SUMS), process(SUMS, psutil.STATUS_RUNNING, 8.0, 12.0), Activity.WAITS),
        (process(MULTIPLY), process(MULTIPLY, psutil.STATUS_RUNNING, 8.0, 12.0), Activity.COMPUTES),
        (process(READ), process(REDUCE), Activity.MOVES),
        (process(NO_STACK), process(NO_STACK), Activity.UNKNOWN),
        (process(), process(status=psutil.STATUS_TRACING_STOP), Activity.UNKNOWN),  # in a debugger
    ],
)
def test_the_activity_between_two_samples(before: ProcessSample, now: ProcessSample, expected: Activity) -> None:
    assert between(before, now) is expected


def test_a_prefetch_thread_that_moves_is_activity_only_if_the_rank_does_not_wait_for_others() -> None:
    thread, moved = (("read", "user/data.py", 7),), (("read", "user/data.py", 9),)
    for main, expected in ((("get", "user/train.py", 5), Activity.MOVES), (REDUCE.threads[0].frames[0], Activity.WAITS)):
        frame = (main.function, main.file, main.line) if isinstance(main, Frame) else main
        assert between(process(stack(frame, others=thread)), process(stack(frame, others=moved))) is expected


def test_a_child_counts_like_the_rank() -> None:
    rank, child = process(), process(ELSEWHERE)
    assert between(rank, rank, child, child) is Activity.SLEEPS
    assert between(rank, rank, child, replace(child, stack=READ)) is Activity.MOVES
    assert between(rank, rank, child, replace(child, main_seconds=6.0)) is Activity.COMPUTES
    assert between(rank, rank, child, replace(child, status=psutil.STATUS_DISK_SLEEP)) is Activity.READS_DISK
    assert between(rank, rank, process(NO_STACK), process(NO_STACK)) is Activity.SLEEPS, "its CPU time alone decides"
    started = activity(RankSample(0.0, rank, {}), RankSample(SECONDS, rank, {17: child}))
    assert started is Activity.MOVES, "a child has started"


def test_a_gpu_counts_unless_the_rank_waits_for_others() -> None:
    assert between(process(), process(), gpu=100.0) is Activity.USES_GPU
    assert between(process(), process(), gpu=None) is Activity.UNKNOWN
    assert between(process(REDUCE), process(REDUCE), gpu=100.0) is Activity.WAITS


PROGRAM = """
import os, pathlib, subprocess, sys, time
from ropewalk.cluster.engines.stacks import allow_stack_dumps
allow_stack_dumps(os.getppid(), pathlib.Path(sys.argv[1]))
pathlib.Path(sys.argv[1] + ".up").touch()
SPIN = "while True: pass"
match sys.argv[2]:
    case "sleep": time.sleep(3600)
    case "spin": exec(SPIN)
    case "move":
        while True:
            time.sleep(0.3)
            time.sleep(0.3)
    case "loader": subprocess.run([sys.executable, "-c", SPIN])
"""

Begin = Callable[[str], RankProcess]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    started: list[subprocess.Popen[bytes]] = []

    def start(how: str) -> RankProcess:
        dumps = tmp_path / f"stacks-{len(started)}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen([sys.executable, "-c", PROGRAM, str(dumps), how], env=environment))
        until(Path(f"{dumps}.up").exists, Patience.START)
        return RankProcess(started[-1].pid, tmp_path / "heart", dumps)

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        process.wait()


def test_real_processes_show_what_they_do(begin: Begin) -> None:
    ranks = {how: begin(how) for how in ("sleep", "spin", "move", "loader")}
    numbered = dict(enumerate(ranks.values()))
    newest = take_samples(numbered)
    expected = {1: Activity.COMPUTES, 2: Activity.MOVES, 3: Activity.COMPUTES}
    observed: list[set[Activity]] = [set() for _ in ranks]

    def done() -> bool:
        nonlocal newest
        before, newest = newest, take_samples(numbered)
        for rank, sample in newest.items():
            observed[rank].add(activity(before[rank], sample))
        sleeps = activity(before[0], newest[0]) is Activity.SLEEPS
        return sleeps and all(item in observed[rank] for rank, item in expected.items())

    until(done, Patience.START, lambda: observed, look_seconds=1.0)
    assert Activity.SLEEPS not in observed[1] | observed[3]


def test_a_stop_has_a_marker_that_changes_when_the_process_has_run(begin: Begin) -> None:
    pid = begin("spin").pid
    assert stop_marker(pid) is None

    def stopped() -> str | None:
        os.kill(pid, signal.SIGSTOP)
        return str(until(lambda: stop_marker(pid), Patience.SIGNAL))

    first = stopped()
    assert stop_marker(pid) == first
    os.kill(pid, signal.SIGCONT)
    until(lambda: stop_marker(pid) is None, Patience.SIGNAL)
    assert stopped() != first
