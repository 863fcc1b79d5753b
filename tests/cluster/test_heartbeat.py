"""Heartbeats of ranks, and the agents' decision that they hang, on simulated clocks."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError

from ropewalk.cluster.engines.hang import Agreement, Hangs, Watch
from ropewalk.cluster.run.heartbeat import LONG_SECONDS, PATIENCE_SECONDS, Heart, Pace, Phase, heart_file, read_beat

FACTOR = 10.0
LOOK = 0.05


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """Two ranks and their agent's watch, one clock for all."""

    def __init__(self, folder: Path, ranks: int = 2) -> None:
        self.clock = Clock()
        self.files = {rank: heart_file(folder / "stop", rank) for rank in range(ranks)}
        self.hearts = [Heart(path, 1, FACTOR, self.clock) for path in self.files.values()]
        self.watch = Watch(self.files, 1, self.clock)

    def pass_time(self, seconds: float, look: float = LOOK) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            self.clock.now = min(end, self.clock.now + look)
            self.watch.read()

    def beat(self, phase: Phase, step: int = 0, rank: int | None = None) -> None:
        for heart in self.hearts if rank is None else [self.hearts[rank]]:
            heart.beat(phase, step)

    def train(self, steps: int, seconds: float = 0.1) -> None:
        for step in range(steps):
            self.beat(Phase.STEP, step)
            self.pass_time(seconds)
        self.beat(Phase.STEP, steps)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_late_step_is_noticed_within_ten_steps_and_three_seconds(node: Node) -> None:
    node.train(20)
    node.pass_time(1.9)
    assert not node.watch.all_late()
    node.pass_time(0.3)
    assert node.watch.all_late()
    assert node.watch.beats[1].step == 20
    node.beat(Phase.STEP, 21, rank=0)
    node.pass_time(LOOK)
    assert not node.watch.all_late(), "it went on after all"


def test_a_rank_that_loads_excuses_those_that_wait_for_it(node: Node) -> None:
    node.train(20)
    node.beat(Phase.REPORT, 20, rank=0)
    node.pass_time(10.0)
    assert not node.watch.all_late()


def test_data_may_be_as_slow_as_ten_times_the_slowest_so_far(node: Node) -> None:
    for wait in (0.01, 0.01, 2.0):
        node.beat(Phase.DATA)
        node.pass_time(wait)
        node.beat(Phase.STEP)
        node.pass_time(0.1)
    node.beat(Phase.DATA)
    node.pass_time(19.0)
    assert not node.watch.all_late()
    node.pass_time(2.0)
    assert node.watch.all_late()


def test_a_rank_that_told_nothing_yet_excuses_none_of_the_others(node: Node) -> None:
    node.beat(Phase.LOADING, rank=0)
    node.pass_time(PATIENCE_SECONDS - 1, look=0.25)
    assert not node.watch.all_late()
    node.pass_time(2)
    assert node.watch.all_late()


def test_who_never_tells_anything_is_never_late(node: Node, tmp_path: Path) -> None:
    node.pass_time(3600, look=0.25)
    assert not node.watch.all_late()
    Heart(None).beat(Phase.STEP, 1)
    off = Heart(tmp_path / "off", 1, None)
    off.beat(Phase.STEP, 1)
    assert not (tmp_path / "off").exists(), "switched off"


def test_the_first_steps_of_a_group_may_take_long(node: Node) -> None:
    node.beat(Phase.STEP, 1)
    node.pass_time(PATIENCE_SECONDS - 1, look=0.25)
    assert not node.watch.all_late()
    assert node.watch.beats[0].phase is Phase.FIRST_STEP


def test_time_in_which_the_agent_stood_still_does_not_count(node: Node) -> None:
    """A machine that sleeps, or is paused with everything on it, stops the agent too."""
    node.train(20)
    node.pass_time(3600.0, look=600.0)
    assert not node.watch.all_late()
    node.pass_time(1.0)
    assert node.watch.all_late(), "it goes on to count where it runs"


def test_what_an_older_group_told_does_not_count(node: Node) -> None:
    node.train(20)
    watch = Watch(node.files, 2, node.clock)
    node.clock.now += 0.2
    watch.read()
    assert watch.beats == {}
    assert not watch.all_late()


def test_a_new_group_knows_how_long_the_long_phases_of_the_one_before_took(node: Node, tmp_path: Path) -> None:
    node.beat(Phase.VALIDATION)
    node.pass_time(20.0)
    node.beat(Phase.CHECKPOINT)
    node.pass_time(0.5)
    node.beat(Phase.STEP)
    successor = Heart(node.files[0], 2, FACTOR, node.clock)
    assert successor.pace.allowed_seconds(Phase.VALIDATION) == pytest.approx(200.0)
    assert successor.pace.allowed_seconds(Phase.CHECKPOINT) == LONG_SECONDS
    successor.begin(patience_seconds=7200)
    beat = read_beat(node.files[0])
    assert beat is not None
    assert (beat.group, beat.phase, beat.allowed_seconds) == (2, Phase.LOADING, 7200)


def test_a_disk_that_is_full_costs_the_heartbeat_and_not_the_rank(tmp_path: Path) -> None:
    heart = Heart(tmp_path / "nowhere" / "heart", 1, FACTOR)
    heart.beat(Phase.STEP)
    assert read_beat(tmp_path / "nowhere" / "heart") is None


# --- 100,000 steps


def phases(random_: random.Random, median: float, first: bool) -> Iterator[tuple[Phase, float]]:
    """One rank's step after the other: half of them below the median, the others up to five times it; and what lies between."""
    for step in range(100_000):
        yield Phase.DATA, 0.05 * median * random_.random() if step % 997 else min(9.0, 5 * median)  # a new shard
        yield Phase.STEP, median * (random_.uniform(0.2, 1) if random_.random() < 0.5 else random_.uniform(1, 5))
        yield Phase.REPORT, (20.0 if step % 5003 == 5002 else 0.01 * median) if first else 0.0  # a disk that stands still
        if step % 500 == 499:
            yield Phase.VALIDATION, random_.uniform(20, 100) * median
        if step % 250 == 249:
            yield Phase.CHECKPOINT, random_.uniform(0.1, 30)


@pytest.mark.parametrize("median", [0.002, 2.0])
def test_no_false_alarm_in_100_000_uneven_steps(median: float) -> None:
    """Two ranks. In a step each waits for the other; an alarm needs both to be late at the same time."""
    random_ = random.Random(1)
    paces, now = [Pace(FACTOR), Pace(FACTOR)], [0.0, 0.0]
    late: list[list[tuple[float, float]]] = [[], []]  # when each rank was late, from and to
    for pace in paces:
        pace.add(Phase.LOADING, 3.0)
        pace.add(Phase.FIRST_STEP, 10 * median)
    for (phase, mine), (_, other) in zip(phases(random_, median, True), phases(random_, median, False), strict=True):
        ends = [now[0] + mine, now[1] + other]
        if phase in (Phase.STEP, Phase.VALIDATION, Phase.CHECKPOINT):
            ends = [max(ends)] * 2
        for rank, pace in enumerate(paces):
            if ends[rank] > (limit := now[rank] + pace.allowed_seconds(phase)):
                late[rank].append((limit, ends[rank]))
            pace.add(phase, ends[rank] - now[rank])
        now = ends
    assert not [(a, b) for a in late[0] for b in late[1] if a[0] < b[1] and b[0] < a[1]]
    assert len(late[1]) < 100, "and it is seldom that one rank is excused by the other alone"


def test_a_step_that_hangs_is_noticed_amid_jitter() -> None:
    random_, pace = random.Random(2), Pace(FACTOR)
    for phase, seconds in phases(random_, 0.1, False):
        if phase in (Phase.STEP, Phase.DATA):
            pace.add(phase, seconds)
    assert pace.allowed_seconds(Phase.STEP) < FACTOR * pace.step_seconds + 3.0


# --- agreeing


class Store:
    """The store of the formation, in this process."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.gone = False

    def add(self, key: str, amount: int) -> int:
        if self.gone:
            raise DistNetworkError("connection reset")
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


def test_nodes_hang_together_or_not_at_all() -> None:
    store = Store()
    agreement, two = Agreement(store, 2), Agreement(store, 2)
    assert not agreement.vote("hung", True)
    assert not two.vote("hung", False)
    assert not agreement.vote("hung", False), "its ranks went on"
    assert not two.vote("hung", True)
    assert agreement.vote("hung", True)
    two._next_poll = 0.0
    assert two.vote("hung", True)


def test_without_a_store_nothing_is_agreed() -> None:
    store = Store()
    alone = Agreement(store, 1)
    store.gone = True
    assert not alone.vote("hung", True)
    store.gone = False
    assert alone.vote("hung", True)


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
