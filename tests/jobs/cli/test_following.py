"""A run is followed to its end: from here, from another machine, by a person who leaves."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.runs.show.events import format_event
from ropewalk.jobs.runs.show.follow import follow
from tests.fakes.nfs import Network, need_nfs
from tests.jobs.shell import Shell, pretrain


def test_a_run_that_nobody_carries_is_not_waited_for_forever(
    shell: Shell, running: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ropewalk.cluster.backends.base import BackendState
    from ropewalk.jobs.runs.show import follow

    lost = BackendState(state=RunState.UNKNOWN, reason="its supervisor died")
    monkeypatch.setattr(follow, "settle", lambda run: lost)
    clock = iter(range(0, 1000, 4))
    watch = follow.Watch(running, clock=lambda: float(next(clock)))
    rounds = 1
    while not watch.over():
        rounds += 1
    assert rounds == follow.LOST_ANSWERS
    assert watch.abandoned == "its supervisor died"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "group_formed", "group": 2, "nodes": 1}, "group 2 formed on 1 node"),
        ({"event": "resumed", "step": 7, "world_size": 4}, "resumed from the checkpoint of step 7 on 4 ranks"),
        ({"event": "nodes_asked_for", "count": 2}, "requested 2 more nodes"),
        ({"event": "pods_asked_for", "count": 1}, "requested 1 pod in total from Kubernetes"),
    ],
)
def test_an_event_in_words(event: dict[str, Any], message: str) -> None:
    assert str(format_event(event)).endswith(f"  {message}")


@pytest.mark.parametrize("terminal", [False, True])
def test_following_tells_progress_and_events(running: RunDir, terminal: bool) -> None:
    reports = iter([
        {"stage": "read", "done": 2_500_000, "total": None, "unit": "B", "rates": {"MB/s": 0.0}},
        {"stage": "ask", "done": 1, "total": None, "unit": "questions"},
        {"stage": "train", "done": 2, "total": 3, "unit": "steps", "rates": {"tokens/s": 12345.0}},
    ])  # fmt: skip
    running.event("rank_lost", rank=1, node=0, exit_code=-9)

    def go_on(_: float) -> None:
        report = next(reports, None)
        if report:
            write_json(running.progress, report)
        else:
            running.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="[done]"))

    out = io.StringIO()
    running.wandb.mkdir()
    write_json(running.path / "wandb/address.json", {"address": "https://wandb.example/me/x"})
    follow(running, Console(file=out, width=200, force_terminal=terminal), sleep=go_on)
    assert out.getvalue().count("W&B: https://wandb.example/me/x") == 1
    assert "1 questions" not in out.getvalue()
    for text in ("rank 1 on node 0 killed (SIGKILL)", "1 question", "2.5 MB", "2/3 steps  loss 2.000  12.3k tokens/s"):
        assert text in out.getvalue()


def test_a_program_that_tells_nothing_is_running_once_it_has_started(running: RunDir) -> None:
    running.progress.unlink(missing_ok=True)
    out = io.StringIO()
    observed: list[str] = []

    def go_on(_: float) -> None:
        observed.append(out.getvalue())
        if len(observed) == 1:
            (running.log_dir(1) / "rank-0.log").touch()
        elif len(observed) == 20:
            running.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))

    for log in running.log_dir(1).glob("rank-*.log"):
        log.unlink()
    follow(running, Console(file=out, width=200, force_terminal=True), sleep=go_on)
    assert "running" not in observed[0]
    assert "starting: PyTorch and the job's modules are being imported" in observed[0]
    assert "running" in out.getvalue()


def test_a_run_is_followed_from_another_machine(tmp_path: Path) -> None:
    """The follower sees progress, events and the end at once, although it looked for them before they existed."""
    need_nfs()
    network = Network(tmp_path / "network")
    try:
        there = RunDir.create("far", {"job": "pretrain", "config": {}, "cluster": "local"}, network.client())
        here = RunDir(network.client() / there.id)
        there.make_folders(there.begin_attempt())
        looks = iter(range(100))

        def go_on(_: float) -> None:
            look = next(looks)
            if look == 1:
                write_json(there.progress, {"stage": "train", "done": 2, "total": 3, "unit": "steps", "rates": {}})
                MetricLog(JobContext(run=there, attempt=1)).log(2, {"train/loss": 2.0})
            elif look == 2:
                there.event("rank_lost", rank=1, node=0, exit_code=-9)
                there.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
            assert look < 4, "it did not see the end"

        out = io.StringIO()
        follow(here, Console(file=out, width=200), sleep=go_on)
        for text in ("2/3 steps  loss 2.000", "rank 1 on node 0 killed"):
            assert text in out.getvalue()
    finally:
        network.close()


def test_ctrl_c_leaves_the_run_alone(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from ropewalk.jobs.cli import outcome

    def interrupted(*_: object, **_streams: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outcome, "follow", interrupted)
    shell("run", *pretrain("--on", "slow"), expect=130)
    assert "keeps running" in shell.err
    assert "ropewalk cancel pretrain-" in shell.err
