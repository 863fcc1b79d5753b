"""Schedules of the simulator hold its properties, and it notices protocols that do not."""

import os

import pytest

from ropewalk.cluster.membership.members import Members
from ropewalk.cluster.membership.node_agent import NodeAgent
from tests.cluster.membership import simulator
from tests.cluster.membership.simulator import ViolationError, run, run_with_spares

SEED = int(os.environ.get("ROPEWALK_SEED", "1"))


def test_schedules_of_few_nodes() -> None:
    worlds = [run(seed, 3, 5) for seed in range(SEED, SEED + 40)]
    assert sum(len(world.disk.groups) for world in worlds) > 80, "faults make them form new groups"
    assert sum(world.disk.term > 1 for world in worlds) > 5, "some coordinators die"


@pytest.mark.soak("minutes; make test runs 40 schedules of 3 to 5 nodes")
def test_schedules_of_many_nodes() -> None:
    for seed in range(3000):
        run(seed, 3, 9)
    for seed in range(20):
        run(seed, 100, 100)


def test_the_world_size_stays_while_there_are_spare_nodes() -> None:
    worlds = [run_with_spares(seed) for seed in range(SEED, SEED + 30)]
    assert sum(len(world.disk.groups) for world in worlds) > 90


def test_a_schedule_replays_from_its_seed() -> None:
    first, second = (run(SEED, 3, 9) for _ in range(2))
    assert first.log == second.log
    assert first.disk == second.disk


def violated(text: str = "", seeds: range = range(300)) -> bool:
    """Return True if a schedule violates a property with an error that contains `text`."""
    for seed in seeds:
        try:
            run(seed, 3, 5)
        except ViolationError as error:
            if text in str(error):
                return True
    return False


def test_a_group_number_that_two_coordinators_give_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was taken over from may come back, and form one more group."""
    monkeypatch.setattr(simulator.Disk, "reserve", lambda disk, attempt, number: number + 1)
    assert violated("of rank", range(50, 300)), "rare: the later one has to form its group before it hears of the other's"


def test_a_disk_without_a_fence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator.Disk, "claim", lambda disk, fence: True)
    monkeypatch.setattr(simulator.Disk, "commit", _commit_anything)
    assert violated("is committed after", range(50, 300)), "rare: a group lives on without its coordinator"


def _commit_anything(disk: simulator.Disk, step: int, fence: tuple[int, int]) -> bool:
    if step != len(disk.steps):
        raise ViolationError(f"step {step} is committed after {len(disk.steps)} steps by group {fence}")
    disk.steps.append(fence)
    return True


def test_an_agent_that_keeps_its_ranks_after_its_session_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeAgent, "joined", lambda agent: [])
    assert violated("no group of all")


def test_a_session_that_begins_again_under_its_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The welcome may be lost, and the agent would take the next one for that of its old session."""
    greet = Members.greet
    monkeypatch.setattr(Members, "greet", lambda self, wire, hello, *rest: greet(self, wire, {**hello, "begun": False}, *rest))
    assert violated()
