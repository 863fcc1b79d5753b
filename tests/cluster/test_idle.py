"""Idle GPUs: a warning, and the end of the run if a limit is set; loading, validation, compilation and saves are not idle."""

from pathlib import Path

import pytest

from ropewalk.cluster.agent.idle import WARNING_MINUTES, IdleWatch
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line
from ropewalk.cluster.run.heartbeat import FIRST_STEPS, Heart
from ropewalk.cluster.run.phase_clock import Phase


class Watched:
    """A run of two nodes with two GPUs each, watched once a minute."""

    def __init__(self, folder: Path, limit: float | None) -> None:
        self.run = RunDir.create("test", {"job": "command", "config": {}}, folder)
        self.run.begin_attempt()
        (self.run.attempt_dir(1) / "nodes").mkdir(exist_ok=True)
        self.now, self.heart = 1e9, Heart(folder / "heart-0", 1, 300.0)
        self.watch = IdleWatch(self.run, 1, limit, folder / "heart-0", clock=lambda: self.now)

    def minutes(self, number: int, *percents: float) -> None:
        """Let time pass, with this use of the four GPUs."""
        for _ in range(number):
            self.now += 60
            for node in range(2):
                use = {f"gpu{index}_percent": percent for index, percent in enumerate(percents[2 * node : 2 * node + 2])}
                append_line(self.run.attempt_dir(1) / f"nodes/node-{node}.jsonl", {"time": self.now, "node": node, **use})
            self.watch.look()

    def events(self) -> list[str]:
        return [event["event"] for event in self.run.read_events()]


def test_a_warning_without_a_limit(tmp_path: Path) -> None:
    watched = Watched(tmp_path, None)
    watched.minutes(int(WARNING_MINUTES), 0, 0, 0, 0)
    assert watched.events() == []
    watched.minutes(500, 0, 1, 0, 4)
    assert watched.events() == ["gpus_idle"]
    assert not watched.run.cancel_requested
    watched.minutes(1, 0, 90, 0, 0)
    watched.minutes(12, 0, 0, 0, 0)
    assert watched.events() == ["gpus_idle"] * 2, "another time"


def test_a_limit_ends_the_run_once(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 30)
    watched.minutes(30, 0, 0, 0, 0)
    assert not watched.run.cancel_requested
    watched.minutes(3, 0, 0, 0, 0)
    assert watched.run.cancel_requested
    assert watched.events() == ["gpus_idle", "idle_stop"]


def test_one_used_gpu_is_enough(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 5)
    watched.minutes(100, 0, 0, 0, 7)
    watched.minutes(100)  # MIG: nothing is told
    assert watched.events() == []


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.STEP, Phase.VALIDATION, Phase.CHECKPOINT])
def test_work_elsewhere_is_not_idle(tmp_path: Path, phase: Phase) -> None:
    """The first steps of a group compile; later ones wait for what keeps the GPUs idle."""
    watched = Watched(tmp_path, 5)
    watched.heart.beat(phase, 1)
    watched.minutes(100, 0, 0, 0, 0)
    assert watched.events() == []
    for _ in range(FIRST_STEPS):
        watched.heart.beat(Phase.STEP, 2)
    watched.heart.beat(Phase.DATA, 2)
    watched.minutes(7, 0, 0, 0, 0)
    assert watched.events() == ["gpus_idle", "idle_stop"]
