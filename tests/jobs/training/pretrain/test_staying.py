"""Ranks that survive the end of their group: they keep their process, lose no memory, and compute the same."""

import gc
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

from ropewalk.cluster.engines.entry import run_entry
from ropewalk.cluster.errors import EXIT_LOST_PEER
from ropewalk.cluster.membership.node_agent import LEAVE_SECONDS
from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.process.ports import free_port
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.loop.trainer import Trainer
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.fork_server import SERVER
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, events, launch, log_of, losses, make_run, pretrain_config, weights
from tests.patience import Patience, until

GROUPS = 6
THREADS = {"writer", "prefetch", "ropewalk-checkpoint"}  # of a group


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


def test_survivors_keep_their_process_and_the_loss_repeats(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at every step: each kill meets a save."""
    config = pretrain_config(data, steps=120, checkpoint={"every_steps": 1})
    run = begin(tmp_path, monkeypatch, config)
    reach(run, 5)
    pids = {rank: pid_of(run, rank) for rank in (0, 1)}
    for killed in (1, 0, 1):
        goes_on_after(run, psutil.Process(pids[killed]).kill)
        now = {rank: pid_of(run, rank) for rank in (0, 1)}
        assert now[1 - killed] == pids[1 - killed]
        assert now[killed] != pids[killed]
        pids = now
        reach(run, max(losses(run)) + 5)
    finish(run)
    lost = [(event["rank"], event["exit_code"]) for event in events(run, "rank_lost") if event["exit_code"] != EXIT_LOST_PEER]
    assert lost == [(rank, -signal.SIGKILL) for rank in (1, 0, 1)]
    assert run.read_errors(1) == []

    peaceful = make_run(tmp_path, pretrain_config(data, steps=120))
    launch(peaceful, 2)
    assert losses(run) == losses(peaceful)
    assert equal(weights(run), weights(peaceful))


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


class Line:
    """The line of a rank that stays, without an agent."""

    stays = True

    def announce(self, *, stays: bool) -> None:
        assert stays

    def is_over(self, group: int) -> bool:
        return False


def break_again_and_again(run: RunDir, results: Path) -> None:
    """Form groups in one process, each of which breaks in its fourth step, and record what stays behind each."""
    gc.freeze()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    attempt, start_step, left = run.begin_attempt(), Trainer._start_step, []

    def start_or_break(self: Trainer, batch: Any) -> None:
        if self.progress.step == 3 * self.context.group + 1:
            raise RuntimeError("gloo: a peer is gone")
        start_step(self, batch)

    Trainer._start_step = start_or_break  # type: ignore[method-assign]
    for group in range(1, GROUPS + 1):
        os.environ["MASTER_PORT"] = str(free_port("127.0.0.1"))
        line: Any = Line()
        context = JobContext(run=run, attempt=attempt, group=group, line=line)
        context.fence.claim()
        assert run_entry(context) is None
        gc.collect()
        process = psutil.Process()
        until(
            lambda: not {"writer", "prefetch", "ropewalk-checkpoint"} & {t.name for t in threading.enumerate()}, Patience.SIGNAL
        )
        objects, kinds = gc.get_objects(), (DeviceMesh, torch.nn.Module, Trainer)
        alive = [sum(isinstance(each, kind) for each in objects) for kind in kinds]
        left.append({"alive": alive, "files": process.num_fds(), "threads": process.num_threads()})
        left[-1]["bytes"] = process.memory_info().rss
    results.write_text(json.dumps(left))


def test_groups_that_break_leave_nothing_in_the_process(data: Path, tmp_path: Path) -> None:
    run, results = make_run(tmp_path, pretrain_config(data, steps=100)), tmp_path / "left.json"
    process = SERVER.Process(target=break_again_and_again, args=(run, results))
    process.start()
    process.join()
    left = json.loads(results.read_text())
    assert [each["alive"] for each in left] == [[0, 0, 0]] * GROUPS
    assert {each["files"] for each in left[1:]} == {left[1]["files"]}
    assert {each["threads"] for each in left[1:]} == {left[1]["threads"]}
    assert left[-1]["bytes"] - left[1]["bytes"] < 24 << 20
