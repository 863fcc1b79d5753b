"""GRPO on virtual nodes, parts killed at random: no rollout is lost or learnt twice, and the parameters are those of peace."""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.rollouts.ledger import read_rollouts
from tests.jobs.launch import equal, weights
from tests.jobs.training.align.pairs import make_model
from tests.jobs.training.align.rolling import grpo_config, prompts, write_prompts
from tests.patience import Patience, until

pytestmark = pytest.mark.soak("two minutes; test_grpo.py kills at two moments")

STEPS, BATCH, GROUP, KILLS = 120, 16, 4, 20


def rank(number: int) -> Callable[[RunDir], list[psutil.Process]]:
    return lambda run: writers_of(run.log_dir(run.attempts()[-1]) / f"rank-{number}.log")[:1]


def reward_process(run: RunDir) -> list[psutil.Process]:
    results = [child for number in (0, 1) for item in rank(number)(run) for child in item.children(recursive=True)]
    return [child for child in results if any("rewards.process" in word for word in child.cmdline())][:1]


def agent(run: RunDir) -> list[psutil.Process]:
    """The agent of a node, which is the driver of its ranks."""
    lines = read_lines(run.attempt_dir(run.attempts()[-1]) / "agents.jsonl")
    return [psutil.Process(report["pid"]) for report in lines if psutil.pid_exists(report["pid"])][-1:]


def worker(run: RunDir) -> list[psutil.Process]:
    return [
        child
        for item in rank(0)(run)
        for child in item.children()
        if "ropewalk.jobs.training.align.grpo.worker" in child.cmdline()
    ][:1]


PARTS = {"rank 0": rank(0), "rank 1": rank(1), "reward process": reward_process, "agent": agent}
WITH_WORKERS = {**PARTS, "rollout worker": worker}


def kill(run: RunDir, part: str) -> bool:
    """Kill a part of the run by SIGKILL, an agent with all that belongs to it; returns whether it was there."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError, IndexError):
        for process in WITH_WORKERS[part](run):
            os.killpg(process.pid, signal.SIGKILL) if part == "agent" else process.kill()
            return True
    return False


def put(run: RunDir) -> int:
    """Number of chunks in the ledger."""
    return sum(1 for _ in (run.path / "rollouts").glob("at-*/0-*.arrow"))


def check_used_once(run: RunDir) -> None:
    rows = read_rollouts(run)
    assert Counter(rows["state"].to_pylist()) == {"used": STEPS * BATCH}
    keys = zip(rows["slot"].to_pylist(), rows["sample"].to_pylist(), rows["step"].to_pylist(), strict=True)
    assert sorted(keys) == sorted((k // GROUP, k % GROUP, k // BATCH) for k in range(STEPS * BATCH))


@pytest.mark.parametrize("workers", [0, 1])
def test_twenty_random_kills_of_any_part_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Answers of rollout workers, which are killed too, are those of ranks that nobody disturbs."""
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    model, data = make_model(tmp_path / "model"), write_prompts(tmp_path / "prompts.jsonl", prompts(50))

    def begin(workers: int) -> RunDir:
        resources = {"nodes": 1, "ranks_per_node": 2}
        config: dict[str, Any] = grpo_config(model, data, steps=STEPS, checkpoint={"every_steps": 5}, resources=resources)
        return submit("align", AlignConfig.model_validate({**config, "grpo": {**config["grpo"], "chunk": 2, "workers": workers}}))

    parts = sorted(WITH_WORKERS if workers else PARTS)
    run, chance = begin(workers), random.Random(workers)
    killed: list[str] = []
    while len(killed) < KILLS:
        at = put(run) + chance.randint(3, 30)  # so much later
        until(lambda at=at: put(run) >= at or run.last_outcome() is not None, Patience.STEP)
        outcome = run.last_outcome()
        assert outcome is None or not outcome.state.final, f"it ended after {killed}: {outcome}"
        part = chance.choice(parts)
        if kill(run, part):
            killed.append(part)
    wait(run)
    outcome = run.last_outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, f"{outcome.cause}, after {killed}"
    peaceful = begin(0)
    wait(peaceful)
    print(f"killed: {Counter(killed)}; attempts: {len(run.attempts())}")
    assert equal(weights(peaceful, STEPS), weights(run, STEPS))
    for item in (run, peaceful):
        check_used_once(item)
    assert not [event for event in run.read_events() if event["event"] == "reward_failed"]
