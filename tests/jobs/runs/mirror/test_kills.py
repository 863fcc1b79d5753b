"""A hundred kills of training, sidecar and relay over twenty attempts, the server away twice: every step once, in order."""

import random
import time
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.mirror.mirror import send_rest
from tests.fakes.wandb_server import WandbServer
from tests.jobs.runs.mirror.processes import VALIDATION_STEPS, Started, relay, sidecar, train
from tests.jobs.runs.mirror.test_relay import make_run, steps
from tests.patience import Patience, until

ATTEMPTS, KILLS = 20, 5  # of each attempt the last kill is that of training
AWAY = {7: 500, 14: 429}  # in these attempts the server refuses, until training is killed


def lines(run: RunDir) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def arrived(server: WandbServer, run: RunDir) -> int:
    return len(server.runs[run.id].lines) if run.id in server.runs else 0


@pytest.mark.soak("two minutes; make test runs test_every_line_once_though_sidecar_and_relay_are_killed and test_feed.py")
def test_a_hundred_kills_over_twenty_attempts(wandb_server: WandbServer, tmp_path: Path) -> None:
    chance = random.Random(20)
    run = make_run(tmp_path / "runs", "killed")
    watching = Started(relay, run.path.parent)
    kills = 0
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            run.begin_attempt()
        wandb_server.failing = AWAY.get(attempt, 0)
        training, beside = Started(train, run.path, attempt, None), Started(sidecar, run.path, attempt)
        for _ in range(KILLS - 1):
            enough, there = lines(run) + chance.randint(1, 60), arrived(wandb_server, run)
            until(lambda enough=enough: lines(run) >= enough, Patience.STEP)
            if not wandb_server.failing and chance.random() < 0.5:  # in the middle of sending, else wherever it may be
                until(lambda there=there: arrived(wandb_server, run) > there, Patience.STEP)
            if chance.random() < 0.5:
                beside.kill()
                beside = Started(sidecar, run.path, attempt)
            else:
                watching.kill()
                watching = Started(relay, run.path.parent)
            kills += 1
        training.kill()
        beside.kill()  # with its node, as a machine that loses its power
        kills += 1
    wandb_server.failing = 0
    run.begin_attempt()
    last = lines(run)
    train(run.path, ATTEMPTS + 1, last)
    watching.kill()
    run.write_outcome(run.attempts()[-1], Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=time.time()))
    send_rest(run)
    output = wandb_server.run(run.id)
    assert kills == ATTEMPTS * KILLS
    assert list(wandb_server.runs) == [run.id]
    assert steps(output) == list(range(1, last + 1))
    validated = [line["train/step"] for line in output.history if "validation/loss" in line]
    assert validated == list(range(VALIDATION_STEPS, last + 1, VALIDATION_STEPS))
    assert output.rewritten == 0
    assert output.exit_code == 0
    assert any("events/repeated" in line for line in output.history), "steps were done again"
