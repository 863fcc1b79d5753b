"""The three engines on virtual nodes: what an undisturbed run leaves behind."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.engines import ray
from ropewalk.cluster.engines.entry import run_entry
from ropewalk.cluster.engines.ray import RayNode
from ropewalk.cluster.errors import EXIT_LOST_PEER, NotReadyError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import FATAL
from ropewalk.cluster.secrets.store import FileStore
from ropewalk.cluster.spec import RunState
from tests import planted
from tests.cluster.conftest import ROOT, ToyRun
from tests.fork_server import SERVER
from tests.patience import Patience, until

Start = Callable[..., ToyRun]


@pytest.mark.soak(
    "a cold start of two nodes; test_a_stopped_rank_is_replaced_at_once and others have warm ones, test_preempted cold ones"
    " on Slurm"
)
@pytest.mark.usefixtures("cold")
def test_ranks_of_two_nodes_form_one_group(toy: Start) -> None:
    run = toy("count", "ranks", steps=3, resources={"nodes": 2})
    outcome = run.finish()
    assert outcome.state is RunState.SUCCEEDED
    assert outcome.results == {"step": 3, "world": 2}
    logs = {p.name for p in run.run.log_dir(1).iterdir()}
    assert {"node-0.log", "node-1.log", "rank-0.log", "rank-1.log"} <= logs
    assert {s["node"] for k in (0, 1) for s in read_lines(run.run.attempt_dir(1) / "nodes" / f"node-{k}.jsonl")} == {0, 1}


def test_the_process_engine_runs_one_process(toy: Start) -> None:
    assert toy("place", "process").finish().results == {"rank": 0, "world": 1, "attempt": 1}


@pytest.mark.soak("make test runs Ray in chaos/test_sweep.py, and secrets in ranks")
def test_ray_spans_the_nodes_and_leaves_nothing(toy: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of Ray have the run's secrets, and no file has them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    planted.plant("local")
    run = toy("ray_sum", "ray", resources={"nodes": 2}, secrets=[planted.NAME], cluster="local")
    outcome = run.finish()
    assert outcome.results == {"total": 14, "nodes": 2, "niceness": 0, "values": [f"***{planted.NAME}***"]}, outcome.cause
    text = "".join(p.read_text(errors="replace") for p in run.run.path.rglob("*") if p.is_file())
    assert "RAY_AUTH_TOKEN" not in text
    assert f"driver ***{planted.NAME}***" in (run.run.log_dir(1) / "rank-0.log").read_text()
    assert planted.found([tmp_path, Path(os.environ["TMPDIR"])], FileStore.of_cluster("local").folder) == []


def test_a_bug_is_retried_within_its_budget_and_explained(toy: Start) -> None:
    outcome = toy("fail", "process", retries={"bugs": 1}).finish()
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert outcome.cause == "rank 0: ZeroDivisionError: attempt 2"


def test_a_bug_retried_by_ranks_is_not_retried_by_another_attempt(toy: Start) -> None:
    run = toy("fail", "ranks", retries={"bugs": 1})
    assert run.finish().state is RunState.FAILED
    assert run.run.attempts() == [1]
    assert [error["group"] for error in run.run.read_errors(1)] == [1, 2], "once more, as often as it may"


def test_ranks_that_crash_in_every_group_have_a_bug(toy: Start) -> None:
    """Such as a device-side assert, after which NCCL's watchdog aborts: a hundred groups met it again."""
    run = toy("crash", "ranks", retries={"bugs": 1, "disturbances": 8}, signal=int(signal.SIGABRT))
    outcome = run.finish()
    cause = "rank 0: RuntimeError: died of SIGABRT, as in earlier groups; see its log, rank-0.log"
    assert (outcome.state, outcome.cause) == (RunState.FAILED, cause)
    assert run.run.attempts() == [1]
    lost = [event["group"] for event in run.run.read_events() if event["event"] == "rank_lost"]
    assert lost == [1, 2, 3, 4], "three in a row are a bug, which may be retried once"


@pytest.mark.parametrize(
    "settings", [{"signal": int(signal.SIGKILL)}, pytest.param({}, marks=pytest.mark.soak("six groups; make test kills them"))]
)
def test_ranks_that_are_killed_or_lose_a_peer_in_every_group_have_no_bug(toy: Start, settings: dict[str, int]) -> None:
    """Without a signal NCCL says that it lost one: the network may be away for some minutes."""
    run = toy("crash", "ranks", retries={"bugs": 0, "disturbances": 5}, **settings)
    run.finish()
    lost = [event for event in run.run.read_events() if event["event"] == "rank_lost" and event["attempt"] == 1]
    assert len(lost) == 6, "as often as disturbances may be"


def outlived(context: JobContext) -> None:
    """An entry whose group has a successor by the time that it writes."""
    Fence(context.run, context.attempt, context.group + 1).claim()
    context.fence.check()


def test_a_rank_whose_group_has_a_successor_leaves_without_a_trace(tmp_path: Path) -> None:
    run = RunDir.create("toy", {"entry": f"{__name__}:{outlived.__name__}", "config": {}, "resources": {}}, tmp_path)
    attempt = run.begin_attempt()
    code = run_entry(JobContext(run=run, attempt=attempt, group=1, rank=0, local_rank=0, world_size=1))
    assert code == EXIT_LOST_PEER
    assert not run.read_errors(attempt)
    assert not (run.attempt_dir(attempt) / FATAL).exists(), "it would end the group that has succeeded it"


@pytest.mark.soak(
    "two attempts; test_ranks_that_are_killed_or_lose_a_peer_in_every_group_have_no_bug has ranks,"
    " test_a_program_that_knows_nothing_is_restarted_and_counted a program"
)
def test_a_process_that_is_killed_has_no_bug(toy: Start) -> None:
    run = toy("tick", "process", steps=40, retries={"bugs": 0})
    run.reach(3)
    os.kill(run.rank_pid(0), signal.SIGKILL)
    assert run.finish().state is RunState.SUCCEEDED
    first = run.run.outcome(1)
    assert first is not None
    assert (first.state, first.exit_code) == (RunState.REQUEUED, 143)
    assert first.cause == "node 0: the job's process was killed (SIGKILL)"


def test_what_another_attempt_cannot_mend_is_not_retried(toy: Start) -> None:
    run = toy("refuse", "ranks", resources={"nodes": 2})
    outcome = run.finish()
    assert (outcome.state, outcome.exit_code, run.run.attempts()) == (RunState.FAILED, 42, [1])
    assert "give one that exists" in outcome.cause


@pytest.mark.soak("two runs; make test runs test_a_run_starts_after_another_failed_or_after_any_end")
def test_a_run_waits_for_another(toy: Start) -> None:
    first = toy("place", "process")
    second = toy("place", "process", after=(first.run.id,))
    assert second.finish().state is RunState.SUCCEEDED
    assert second.run.outcome(1).started >= first.run.outcome(1).ended  # type: ignore[union-attr]


@pytest.mark.soak(
    "two runs; test_a_failed_step_stops_what_needs_it_and_nothing_else and"
    " test_dependants_of_a_run_without_success_are_cancelled_and_say_so have dependants"
)
def test_a_dependant_of_a_failed_run_is_cancelled_and_says_so(toy: Start) -> None:
    first = toy("fail", "process", retries={"bugs": 0})
    second = toy("place", "process", after=(first.run.id,))
    outcome = second.finish()
    assert outcome.state is RunState.CANCELLED
    assert first.run.id in outcome.cause


def test_a_run_starts_after_another_failed_or_after_any_end(toy: Start) -> None:
    first = toy("fail", "process", retries={"bugs": 0})
    others = [toy("place", "process", after=(f"{condition}:{first.run.id}",)) for condition in ("any", "failed")]
    for other in others:
        assert other.finish().state is RunState.SUCCEEDED
        assert other.run.outcome(1).started >= first.run.outcome(1).ended  # type: ignore[union-attr]


def test_what_is_for_a_failure_does_not_start_after_success(toy: Start) -> None:
    first = toy("place", "process")
    second = toy("place", "process", after=(f"failed:{first.run.id}",))
    outcome = second.finish()
    assert outcome.state is RunState.CANCELLED
    assert outcome.cause == f"never started: it waited for {first.run.id} to fail, which ended as SUCCEEDED"


def torchrun(command: list[str]) -> None:
    from torch.distributed.run import main

    os.environ.update({"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"})
    main(command)


@pytest.mark.soak(
    "torchrun imports torch; make test starts ranks by Ropewalk itself, and a program of torchrun's variables in"
    " test_a_training_program_is_bit_identical_after_a_kill_and_a_stop"
)
@pytest.mark.parametrize(
    ("entry", "results"),
    [
        ("place", {"rank": 0, "world": 2, "attempt": 1}),
        ("count", {"step": 2, "world": 2}),
    ],
)
def test_torchrun_starts_the_same_entry(tmp_path: Path, entry: str, results: dict[str, int]) -> None:
    record = {"job": "toy", "entry": f"tests.fakes.toy:{entry}", "engine": "ranks", "config": {"steps": 2}, "resources": {}}
    run = RunDir.create("toy", record, tmp_path)
    run.begin_attempt()
    command = ["--nproc-per-node=2", "--standalone", "-m", "ropewalk.cluster.engines.entry", str(run.path), "--attempt", "1"]
    process = SERVER.Process(target=torchrun, args=(command,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert run.results() == results


@pytest.mark.parametrize(
    ("program", "error"),
    [("import time; time.sleep(60)", NotReadyError), ("raise SystemExit(143)", NotReadyError), ("1 / 0", RuntimeError)],
)
def test_a_ray_that_does_not_start_in_time_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, error: type[Exception]
) -> None:
    run = RunDir.create("toy", {"job": "toy", "config": {}, "resources": {}}, tmp_path)
    node_keys = {"index": 0, "num_nodes": 1, "address": "127.0.1.1", "cpus": 1, "gpus": 0, "stop_flag": tmp_path / "stop"}
    node = RayNode(run=run, attempt=run.begin_attempt(), **node_keys)
    monkeypatch.setattr(ray, "START_SECONDS", 1.0 if "sleep" in program else Patience.START.value)
    monkeypatch.setattr(ray, "start_command", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(error) as raised:
        ray.start_ray(node, tmp_path, head=True)
    assert isinstance(raised.value, NotReadyError) == (error is NotReadyError)


@pytest.mark.soak("a second Ray; make test runs the one of a sweep in chaos/test_sweep.py")
def test_ray_that_was_killed_is_started_anew(toy: Start) -> None:
    run = toy("ray_sum", "ray", retries={"bugs": 2})
    until((run.run.attempt_dir(1) / "logs" / "ray-0.log").exists)
    agent = read_lines(run.run.attempt_dir(1) / "agents.jsonl")[0]["pid"]
    until(psutil.Process(agent).children)
    os.killpg(agent, signal.SIGKILL)
    outcome = run.finish()
    assert outcome.state is RunState.SUCCEEDED
    assert run.run.attempts() == [1, 2]
