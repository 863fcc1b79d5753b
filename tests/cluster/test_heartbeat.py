"""Heartbeats of ranks, and the agents' decision that they hang, on simulated clocks and with made samples."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.engines.activity import Activity, ProcessSample, RankProcess, RankSample
from ropewalk.cluster.engines.hang import Hangs
from ropewalk.cluster.engines.stacks import Frame, Stack, Thread
from ropewalk.cluster.engines.watch import STOPPED_SECONDS, Watch
from ropewalk.cluster.run.heartbeat import PATIENCE_SECONDS, Heart, Pace, heart_file, read_beat
from ropewalk.cluster.run.phase_clock import Phase

HUNG = 60.0
LOOK = 0.05


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def stack(function: str, file: str) -> Stack:
    return Stack(1, "sleeping", [Thread("MainThread", [Frame(function, file, 7)], main=True)])


SLEEPS, WAITS = stack("read", "user/data.py"), stack("all_reduce", "torch/distributed/distributed_c10d.py")


class Process:
    """A rank's process; by its samples it sleeps, unless a test changes it."""

    def __init__(self, rank: int) -> None:
        self.pid, self.stack, self.status = 100 + rank, SLEEPS, psutil.STATUS_SLEEPING
        self.cpu_seconds, self.share, self.stop_marker = 0.0, 0.0, None

    stop_marker: str | None


class Node:
    """Ranks and their agent's watch, one clock for all."""

    def __init__(self, folder: Path, ranks: int = 2) -> None:
        self.clock = Clock()
        self.files = [heart_file(folder / "stop", rank) for rank in range(ranks)]
        self.processes = [Process(rank) for rank in range(ranks)]
        self.hearts = [Heart(path, 1, HUNG, self.clock) for path in self.files]
        self.watch = self.watch_group(1)
        self.slow: dict[int, Activity] = {}

    def watch_group(self, group: int) -> Watch:
        pairs = zip(self.processes, self.files, strict=True)
        ranks = {rank: RankProcess(item.pid, path, path) for rank, (item, path) in enumerate(pairs)}
        return Watch(ranks, group, len(self.processes), self.clock)

    def pass_time(self, seconds: float, look: float = LOOK) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            self.clock.now = min(end, self.clock.now + look)
            for process in self.processes:
                process.cpu_seconds += process.share * look
            self.watch.read()
            if self.watch.wants_samples:
                self.watch.add(self.samples(), self.watch.beats)
            self.slow |= self.watch.slow_ranks()

    def samples(self) -> dict[int, RankSample]:
        return {
            rank: RankSample(self.clock.now, ProcessSample(item.status, item.cpu_seconds, item.cpu_seconds, item.stack), {})
            for rank, item in enumerate(self.processes)
        }

    def stopped_rank(self) -> int | None:
        return self.watch.stopped_rank(lambda pid: self.processes[pid - 100].stop_marker)

    @property
    def hangs(self) -> bool:
        """Decision of an agent whose node is the only one."""
        watch = self.watch
        return watch.is_silent and watch.has_cause and watch.has_waiter

    def seconds_until_hang(self, at_most: float = 1000.0, look: float = LOOK) -> float:
        began = self.clock.now
        while not self.hangs and self.clock.now - began < at_most:
            self.pass_time(look, look)
        return self.clock.now - began if self.hangs else math.inf

    def beat(self, phase: Phase, step: int = 0, rank: int | None = None) -> None:
        for heart in self.hearts if rank is None else [self.hearts[rank]]:
            heart.beat(phase, step)

    def train(self, steps: int = 20, seconds: float = 0.1) -> None:
        for step in range(steps):
            self.beat(Phase.STEP, step)
            self.pass_time(seconds)
        self.beat(Phase.STEP, steps)

    def wait_for(self, rank: int) -> None:
        """All other ranks are in a collective."""
        for number, process in enumerate(self.processes):
            process.stack = SLEEPS if number == rank else WAITS


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_spare_rank_is_not_watched(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for heart in node.hearts:
        heart.begin(patience_seconds=60)
    node.pass_time(1.0)
    assert not node.watch.is_silent, "it loads"
    node.hearts[0].beat(Phase.SPARE)
    node.pass_time(1.0)
    assert not node.watch.is_spare
    assert not node.watch.is_silent, "the other one loads"
    node.hearts[1].beat(Phase.SPARE)
    node.pass_time(10 * HUNG, look=0.25)
    assert node.watch.is_spare
    assert not node.watch.slow_ranks()
    assert node.hearts[0].pace.longest[Phase.LOADING] == 0.0, "it has not loaded"


@pytest.mark.parametrize(("step_seconds", "expected"), [(0.02, 15.0), (0.2, 15.0), (2.0, 20.0)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sleeping_rank_hangs_after_15_seconds_or_ten_steps(
    tmp_path: Path, ranks: int, step_seconds: float, expected: float
) -> None:
    node = Node(tmp_path, ranks)
    node.train(seconds=step_seconds)
    node.wait_for(0)
    assert node.seconds_until_hang() == pytest.approx(expected, abs=0.3)
    assert node.watch.beats[0].step == 20
    node.beat(Phase.STEP, 21, rank=0)
    node.pass_time(LOOK)
    assert not node.hangs, "it went on after all"


@pytest.mark.parametrize(
    ("change", "activity"),
    [
        ({"share": 0.1, "status": psutil.STATUS_RUNNING}, Activity.COMPUTES),
        ({"share": 0.03}, Activity.COMPUTES),
        ({"status": psutil.STATUS_DISK_SLEEP}, Activity.READS_DISK),
        ({"stack": Stack(1, "sleeping", text="no stack: not permitted")}, Activity.UNKNOWN),
    ],
)
def test_an_active_rank_is_slow_until_hung_seconds(node: Node, change: dict[str, object], activity: Activity) -> None:
    node.train()
    node.wait_for(1)
    vars(node.processes[1]).update(change)
    node.pass_time(14.0)
    assert not node.slow
    assert node.seconds_until_hang() == pytest.approx(HUNG - 14.0, abs=0.3)
    assert node.slow == {1: activity}


def test_a_rank_whose_stack_changes_is_slow(node: Node) -> None:
    node.train()
    node.wait_for(1)
    for number in range(20):
        node.processes[1].stack = stack(f"read_{number}", "user/data.py")
        node.pass_time(2.0)
        assert not node.hangs
    assert node.slow == {1: Activity.MOVES}
    assert node.seconds_until_hang() == pytest.approx(15.0, abs=3.5), "from the last change"


def test_a_rank_that_was_active_must_sleep_as_long_as_any_other(node: Node) -> None:
    node.train()
    node.wait_for(1)
    node.processes[1].share = 1.0
    node.pass_time(30.0)
    node.processes[1].share = 0.0
    assert 15.0 <= node.seconds_until_hang() <= 15.0 + 3.5


@pytest.mark.parametrize("where", [WAITS, SLEEPS], ids=["in collectives", "for data"])
def test_ranks_that_all_do_the_same_hang_after_hung_seconds(node: Node, where: Stack) -> None:
    """The network or a store that all of them read from stands still."""
    node.train()
    for process in node.processes:
        process.stack = where
    assert node.seconds_until_hang() == pytest.approx(HUNG, abs=0.3)
    assert not node.slow


def test_a_waiting_rank_may_spin(node: Node) -> None:
    node.train()
    node.wait_for(1)
    node.processes[0].share, node.processes[0].status = 1.0, psutil.STATUS_RUNNING
    assert node.seconds_until_hang() == pytest.approx(15.0, abs=0.3)


def test_a_stopped_rank_is_noticed_within_a_second(node: Node) -> None:
    node.train()
    node.processes[1].stop_marker = "1 2 3"
    stopped = []
    for _ in range(20):
        node.pass_time(LOOK)
        stopped.append(node.stopped_rank())
    assert stopped.index(1) * LOOK == pytest.approx(STOPPED_SECONDS, abs=0.2)


def test_a_rank_that_is_stopped_and_continued_all_the_time_is_not_stopped(node: Node) -> None:
    """Programs that limit CPU time do so."""
    node.train()
    for number in range(100):
        node.processes[1].stop_marker = f"{number} 2 3"
        node.pass_time(LOOK)
        assert node.stopped_rank() is None


def test_a_stopped_agent_does_not_take_its_ranks_for_stopped(node: Node) -> None:
    node.train()
    node.processes[1].stop_marker = "1 2 3"
    node.pass_time(5.0, look=5.0)
    assert node.stopped_rank() is None
    node.pass_time(LOOK)
    assert node.stopped_rank() is None
    node.processes[1].stop_marker = None
    node.pass_time(1.0)
    assert node.stopped_rank() is None


@pytest.mark.parametrize("phase", [Phase.REPORT, Phase.VALIDATION, Phase.CHECKPOINT, Phase.LOADING, Phase.ROLLOUT])
def test_a_rank_in_a_phase_that_may_take_long_excuses_those_that_wait_for_it(node: Node, phase: Phase) -> None:
    node.train()
    node.beat(phase, 20, rank=0)
    node.wait_for(0)
    assert node.seconds_until_hang(at_most=HUNG - 1) == math.inf
    assert not node.slow


def test_a_wait_for_data_may_be_twice_as_long_as_the_longest_so_far(node: Node) -> None:
    for wait in (0.01, 0.01, 0.01, 20.0, *[0.01] * 70):
        node.beat(Phase.DATA)
        node.pass_time(wait)
        node.beat(Phase.STEP)
        node.pass_time(0.1)
    node.beat(Phase.DATA)
    node.wait_for(1)
    assert node.seconds_until_hang() == pytest.approx(40.0, abs=0.5)


def test_a_rank_without_a_heartbeat_excuses_none_of_the_others(node: Node) -> None:
    node.beat(Phase.LOADING, rank=0)
    seconds = node.seconds_until_hang(at_most=2 * PATIENCE_SECONDS, look=0.25)
    assert seconds == pytest.approx(PATIENCE_SECONDS, abs=1.0)


def test_a_group_without_heartbeats_never_hangs(node: Node, tmp_path: Path) -> None:
    node.pass_time(3600, look=0.25)
    assert not node.hangs
    Heart(None).beat(Phase.STEP, 1)
    off = Heart(tmp_path / "off", 1, None)
    off.beat(Phase.STEP, 1)
    assert not (tmp_path / "off").exists(), "switched off"


def test_the_first_steps_of_a_group_may_take_long(node: Node) -> None:
    node.beat(Phase.STEP, 1)
    node.pass_time(PATIENCE_SECONDS - 1, look=0.25)
    assert not node.hangs
    assert not node.slow
    assert node.watch.beats[0].phase is Phase.FIRST_STEP


def test_time_in_which_the_agent_stood_still_does_not_count(node: Node) -> None:
    """A machine that sleeps, or is paused with everything on it, stops the agent too."""
    node.train()
    node.wait_for(0)
    node.pass_time(3600.0, look=600.0)
    assert not node.hangs
    assert 12.0 < node.seconds_until_hang() < 15.1, "it counts again where it runs"


def test_heartbeats_of_an_older_group_do_not_count(node: Node) -> None:
    node.train()
    watch = node.watch_group(2)
    node.clock.now += 0.2
    watch.read()
    assert watch.beats == {}
    assert not watch.is_silent


def test_samples_from_before_a_heartbeat_do_not_count(node: Node) -> None:
    node.train()
    node.wait_for(0)
    node.pass_time(5.0)
    beats, samples = node.watch.beats, node.samples()
    node.beat(Phase.STEP, 21)
    node.pass_time(LOOK)
    node.watch.add(samples, beats)
    assert node.seconds_until_hang() == pytest.approx(15.0, abs=0.3)


def test_a_new_group_inherits_the_durations_of_long_phases(node: Node) -> None:
    node.beat(Phase.VALIDATION)
    node.pass_time(50.0)
    node.beat(Phase.CHECKPOINT)
    node.pass_time(0.5)
    node.beat(Phase.STEP)
    successor = Heart(node.files[0], 2, HUNG, node.clock)
    assert successor.pace.allowed_seconds(Phase.VALIDATION) == pytest.approx(500.0)
    assert successor.pace.allowed_seconds(Phase.CHECKPOINT) == HUNG
    successor.begin(patience_seconds=7200)
    beat = read_beat(node.files[0])
    assert beat is not None
    assert (beat.group, beat.phase, beat.asleep_seconds, beat.allowed_seconds) == (2, Phase.LOADING, math.inf, 7200)


def test_a_disk_that_is_full_costs_the_heartbeat_and_not_the_rank(tmp_path: Path) -> None:
    heart = Heart(tmp_path / "nowhere" / "heart", 1, HUNG)
    heart.beat(Phase.STEP)
    assert read_beat(tmp_path / "nowhere" / "heart") is None


# --- many steps


def phases(random_: random.Random, median: float, first: bool, steps: int = 20_000) -> Iterator[tuple[Phase, float]]:
    """One rank's step after the other: half of them below the median, the others up to five times it; and what lies between."""
    for step in range(steps):
        yield Phase.DATA, 0.05 * median * random_.random() if step % 997 else min(9.0, 5 * median)  # a new shard
        yield Phase.STEP, median * (random_.uniform(0.2, 1) if random_.random() < 0.5 else random_.uniform(1, 5))
        yield Phase.REPORT, (20.0 if step % 5003 == 5002 else 0.01 * median) if first else 0.0  # a disk that stands still
        if step % 500 == 499:
            yield Phase.VALIDATION, random_.uniform(20, 100) * median
        if step % 250 == 249:
            yield Phase.CHECKPOINT, random_.uniform(0.1, 30)


@pytest.mark.parametrize("steps", [20_000, pytest.param(100_000, marks=pytest.mark.soak("make test simulates 20,000 steps"))])
@pytest.mark.parametrize("median", [0.002, 2.0])
def test_no_false_alarm_in_many_uneven_steps(median: float, steps: int) -> None:
    """Two ranks. In a step each waits for the other; an alarm needs both to be late at the same time."""
    random_ = random.Random(1)
    paces, now = [Pace(HUNG), Pace(HUNG)], [0.0, 0.0]
    late: list[list[tuple[float, float]]] = [[], []]  # when each rank was late, from and to
    for pace in paces:
        pace.add(Phase.LOADING, 3.0)
        pace.add(Phase.FIRST_STEP, 10 * median)
    for (phase, mine), (_, other) in zip(
        phases(random_, median, True, steps), phases(random_, median, False, steps), strict=True
    ):
        ends = [now[0] + mine, now[1] + other]
        if phase in (Phase.STEP, Phase.VALIDATION, Phase.CHECKPOINT):
            ends = [max(ends)] * 2
        for rank, pace in enumerate(paces):
            if ends[rank] > (limit := now[rank] + pace.asleep_seconds(phase)):  # even if both slept
                late[rank].append((limit, ends[rank]))
            pace.add(phase, ends[rank] - now[rank])
        now = ends
    assert not [(a, b) for a in late[0] for b in late[1] if a[0] < b[1] and b[0] < a[1]]
    assert len(late[1]) < 100, "and it is seldom that one rank is excused by the other alone"


def test_jitter_does_not_put_off_a_hang_for_long() -> None:
    random_, pace = random.Random(2), Pace(HUNG)
    for phase, seconds in phases(random_, 0.1, False):
        if phase in (Phase.STEP, Phase.DATA):
            pace.add(phase, seconds)
    assert pace.asleep_seconds(Phase.STEP) == 15.0


def test_steps_that_really_take_so_long_are_done_in_the_end() -> None:
    """Each hang without progress in between doubles what a phase may take."""
    hangs = Hangs()
    assert hangs.leniency(40) == 1
    hangs.note(40)
    hangs.note(40)
    assert hangs.leniency(40) == 4
    assert hangs.leniency(50) == 1, "a checkpoint since then"
    hangs.note(50)
    assert hangs.leniency(50) == 2
