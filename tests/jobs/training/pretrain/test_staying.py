"""Ranks that survive the end of their group: they keep their process, lose no memory, and compute the same."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.errors import EXIT_LOST_PEER
from ropewalk.cluster.membership.node_agent import LEAVE_SECONDS
from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, events, launch, log_of, losses, make_run, pretrain_config, weights
from tests.jobs.training.leaving import check_leaving
from tests.patience import Patience, until


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_documents=400)


def pid_of(run: RunDir, rank: int) -> int:
    """The process of a rank, which is the one that writes its log."""
    path = run.log_dir(1) / f"rank-{rank}.log"
    until(lambda: len(writers_of(path)) == 1, Patience.START, lambda: log_of(run))
    return writers_of(path)[0].pid


def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> RunDir:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    return submit("pretrain", PretrainConfig.model_validate({**config, "resources": {"nodes": 2}}))


def reach(run: RunDir, step: int) -> None:
    until(lambda: max(losses(run), default=0) >= step, Patience.STEP, lambda: log_of(run))


def goes_on_after(run: RunDir, disturb: Callable[[], object]) -> None:
    """Disturb the run, and wait until its next group has completed a step."""
    before = len(events(run, "first_step"))
    disturb()
    until(lambda: len(events(run, "first_step")) > before, Patience.STEP, lambda: log_of(run))


@pytest.mark.soak(
    "two runs, one on two nodes; chaos/test_memory_copies.py kills ranks and checks that others keep their processes, and"
    " test_pretrain.py that kills change no loss"
)
@pytest.mark.parametrize("kills", [(0,), (1, 0)])
def test_survivors_keep_their_process_and_the_loss_repeats(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...]
) -> None:
    """A checkpoint at every step: each kill meets a save."""
    config = pretrain_config(data, steps=30 * len(kills), checkpoint={"every_steps": 1})
    run = begin(tmp_path, monkeypatch, config)
    reach(run, 5)
    pids = {rank: pid_of(run, rank) for rank in (0, 1)}
    for killed in kills:
        goes_on_after(run, psutil.Process(pids[killed]).kill)
        now = {rank: pid_of(run, rank) for rank in (0, 1)}
        assert now[1 - killed] == pids[1 - killed]
        assert now[killed] != pids[killed]
        pids = now
    finish(run)
    lost = [(event["rank"], event["exit_code"]) for event in events(run, "rank_lost") if event["exit_code"] != EXIT_LOST_PEER]
    assert lost == [(rank, -signal.SIGKILL) for rank in kills]
    assert run.read_errors(1) == []

    peaceful = make_run(tmp_path, pretrain_config(data, steps=30 * len(kills)))
    launch(peaceful, 2)
    assert losses(run) == losses(peaceful)
    assert equal(weights(run), weights(peaceful))


@pytest.mark.soak("half a minute; make test runs test_a_stopped_rank_is_replaced_at_once")
def test_a_stopped_peer_is_replaced(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path, monkeypatch, pretrain_config(data, steps=60))
    reach(run, 5)
    stopped = pid_of(run, 1)
    goes_on_after(run, psutil.Process(stopped).suspend)
    assert pid_of(run, 1) != stopped
    finish(run)
    (hang, *_), formed = events(run, "ranks_hung"), events(run, "group_formed")
    assert formed[1]["time"] - hang["time"] < 20 * LEAVE_SECONDS, "this machine may be busy"


def finish(run: RunDir) -> None:
    wait(run)
    outcome = run.last_outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome.cause
    assert run.attempts() == [1]


def test_groups_that_break_leave_nothing_in_the_process(data: Path, tmp_path: Path) -> None:
    check_leaving(make_run(tmp_path, pretrain_config(data, steps=100)), tmp_path)
