"""Ranks, nodes and supervisors that die, and schedulers that want their nodes back: no counted step is lost."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import RunState
from tests import patience
from tests.cluster.conftest import ToyRun
from tests.patience import Patience, until

Start = Callable[..., ToyRun]


def test_a_killed_rank_is_replaced_within_the_attempt(toy: Start) -> None:
    run = toy("count", "ranks", steps=40, resources={"nodes": 2})
    run.reach(5)
    os.kill(run.rank_pid(1), signal.SIGKILL)
    outcome = run.finish()
    assert outcome.state is RunState.SUCCEEDED
    assert run.run.attempts() == [1]
    assert sorted(set(run.steps())) == list(range(1, 41))
    lost = {e["rank"]: e["exit_code"] for e in run.run.read_events() if e["event"] == "rank_lost"}
    assert lost[1] == -signal.SIGKILL, "the other node may notice first that its rank lost a peer"


def test_a_killed_node_of_a_fixed_run_starts_a_new_attempt(toy: Start) -> None:
    run = toy("count", "ranks", steps=40, resources={"nodes": 2})
    run.reach(5)
    run.kill_node(0)
    assert run.finish().state is RunState.SUCCEEDED
    assert run.run.attempts() == [1, 2]
    assert "node 0 died" in run.run.outcome(1).cause  # type: ignore[union-attr]
    assert sorted(set(run.steps())) == list(range(1, 41))


@pytest.mark.parametrize(
    "victims", [[0], pytest.param([1, 0], marks=pytest.mark.soak("two deaths; make test runs that of node 0"))]
)
def test_an_elastic_run_shrinks_and_grows_again(toy: Start, victims: list[int]) -> None:
    run = toy("count", "ranks", steps=2000, resources={"nodes": "1..2"})

    def world() -> int:
        return int((run.run.read_metrics() or [{"world": 0}])[-1]["world"])

    until(lambda: world() == 2)
    for victim in victims:
        run.kill_node(victim)
        for size in (1, 2):
            until(lambda size=size: world() == size)
    run.backend.cancel(run.run)
    run.finish()
    assert run.run.attempts() == [1]
    assert sorted(set(run.steps())) == list(range(1, max(run.steps()) + 1))


def test_a_spare_node_takes_the_place_of_a_dead_one(toy: Start) -> None:
    run = toy("count", "ranks", steps=2000, resources={"nodes": 2, "spare_nodes": 1})

    def groups() -> list[int]:
        return [event["nodes"] for event in run.run.read_events() if event["event"] == "group_formed"]

    run.reach(5)
    nodes = [os.getpgid(run.rank_pid(rank)) for rank in range(2)]
    os.killpg(nodes[1], signal.SIGKILL)
    last = max(run.steps())
    until(lambda: max(run.steps()) > last + 5, Patience.STEP)
    assert os.getpgid(run.rank_pid(0)) == nodes[0], "rank 0 stays on its node"
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED
    assert run.run.attempts() == [1]
    assert groups() == [2, 2]
    assert {line["world"] for line in run.run.read_metrics()} == {2}
    assert sorted(set(run.steps())) == list(range(1, max(run.steps()) + 1))


@pytest.mark.soak("make test runs test_a_group_goes_on_without_its_spare_rank_and_takes_it_in_for_a_lost_one")
def test_a_spare_rank_ends_with_its_group(toy: Start) -> None:
    run = toy("count_in_pairs", "ranks", steps=10, resources={"nodes": "1..3"})
    outcome = run.finish()
    assert (outcome.state, outcome.results) == (RunState.SUCCEEDED, {"step": 10, "world": 2})
    assert run.run.attempts() == [1]
    spare = [event for event in run.run.read_events() if event["event"] == "ranks_spare"]
    assert [(event["spare"], event["ranks"], event["computing"]) for event in spare] == [(1, "2", 2)]


def count_groups(run: ToyRun, since: str = "group_formed") -> list[int]:
    """Return the number of nodes of each group since an event."""
    events = [event for event in run.run.read_events() if event["event"] in {since, "group_formed"}]
    first = next((number for number, event in enumerate(events) if event["event"] == since), len(events))
    return [event["nodes"] for event in events[first:] if event["event"] == "group_formed"]


@pytest.mark.parametrize(
    "spare_dies",
    [False, pytest.param(True, marks=pytest.mark.soak("three deaths of nodes; make test lets the spare one step in"))],
)
def test_a_group_goes_on_without_its_spare_rank_and_takes_it_in_for_a_lost_one(toy: Start, spare_dies: bool) -> None:
    run = toy("count_in_pairs", "ranks", steps=5000, resources={"nodes": "1..3"})
    until(lambda: [event for event in run.run.read_events() if event["event"] == "ranks_spare"])
    run.reach(max(run.steps(), default=0) + 10)
    formed = 1
    if spare_dies:
        run.kill_node(2)
        until(lambda: count_groups(run, "node_returned") == [3])  # a save later, not a loss later
        formed = 2
    assert count_groups(run) == [3] * formed
    last = max(run.steps())
    run.kill_node(1)  # the spare one takes its place
    until(lambda: count_groups(run)[formed : formed + 1] == [2] and max(run.steps()) > last + 5)
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED
    assert run.run.attempts() == [1]
    assert {line["world"] for line in run.run.read_metrics()} == {2}
    assert sorted(set(run.steps())) == list(range(1, max(run.steps()) + 1))


def test_a_node_that_dies_before_its_ranks_have_joined_is_not_waited_for(toy: Start) -> None:
    """Nothing breaks where nothing has begun: the first rank would wait for as long as a collective may take, minutes."""
    run = toy("count", "ranks", steps=20, late=3.0, resources={"nodes": "1..2"})
    until(lambda: count_groups(run) == [2])
    run.kill_node(1)
    until(lambda: len(count_groups(run)) > 1, Patience.START)
    assert run.finish().state is RunState.SUCCEEDED
    assert run.run.attempts() == [1]
    assert run.steps() == list(range(1, 21))


@pytest.mark.parametrize("nodes", ["1..2", pytest.param("2", marks=pytest.mark.soak("make test stops an elastic run"))])
def test_ranks_do_not_wait_for_a_stopped_node_without_ranks(toy: Start, nodes: str) -> None:
    """The node without ranks leaves at once; ranks of the other would otherwise wait for it through all the grace."""
    resources = {"nodes": nodes, "grace_seconds": 3600.0}
    run = toy("count", "ranks", steps=20, stuck_forming=True, preload=["tests.fakes.slow_forming"], resources=resources)
    until((run.run.log_dir(1) / "rank-0.log").exists)
    run.supervisor().send_signal(signal.SIGUSR2)
    until(lambda: run.run.outcome(1) is not None, Patience.STEP)
    first = run.run.outcome(1)
    assert first is not None
    assert (first.state, first.exit_code) == (RunState.PREEMPTED, 85)
    run.backend.cancel(run.run)
    run.finish()


@pytest.mark.soak(
    "make test runs test_an_elastic_run_is_scaled_without_redoing_a_step, and a node that dies before its ranks have joined"
)
def test_a_node_that_is_let_go_as_the_group_forms_is_not_waited_for(toy: Start) -> None:
    run = toy("count", "ranks", steps=20, late=3.0, resources={"nodes": "1..2", "grace_seconds": 1.0})
    until(lambda: [event for event in run.run.read_events() if event["event"] == "group_formed"])
    run.run.request_nodes(1)
    assert run.finish().state is RunState.SUCCEEDED
    assert run.run.attempts() == [1]
    assert run.steps() == list(range(1, 21))


def test_a_preempted_run_saves_and_goes_on(toy: Start) -> None:
    run = toy("count", "ranks", steps=40, resources={"nodes": 2})
    run.reach(5)
    run.supervisor().send_signal(signal.SIGUSR2)
    assert run.finish().state is RunState.SUCCEEDED
    first = run.run.outcome(1)
    assert first is not None
    assert (first.state, first.exit_code) == (RunState.PREEMPTED, 85)
    assert run.steps() == list(range(1, 41)), "an announced stop loses no step and repeats none"


@pytest.mark.soak("make test signals the supervisor in test_a_preempted_run_saves_and_goes_on")
def test_a_signal_to_one_agent_stops_all_at_one_step(toy: Start) -> None:
    run = toy("count", "ranks", steps=40, resources={"nodes": 2})
    run.reach(5)
    agent = next(a["pid"] for a in read_lines(run.run.attempt_dir(1) / "agents.jsonl") if a["node"] == 1)
    os.kill(agent, signal.SIGTERM)
    assert run.finish().state is RunState.SUCCEEDED
    assert run.run.outcome(1).exit_code == 85  # type: ignore[union-attr]
    assert run.steps() == list(range(1, 41))


@pytest.mark.soak(
    "make test signals the supervisor in test_a_preempted_run_saves_and_goes_on, and the job of a run in"
    " test_scancel_saves_and_ends_for_good"
)
def test_a_signal_to_every_process_of_the_run_is_the_agents_alone(toy: Start) -> None:
    """Slurm signals a step in this way: ranks, their server and their children get the signal too, and must survive it."""
    run = toy("count", "ranks", steps=40, resources={"nodes": 2})
    run.reach(5)
    for process in run.supervisor().children(recursive=True):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR2)
    assert run.finish().state is RunState.SUCCEEDED
    assert run.run.outcome(1).exit_code == 85  # type: ignore[union-attr]
    assert run.steps() == list(range(1, 41))
    assert not [e for e in run.run.read_events() if e["event"] == "rank_lost"]


def test_an_elastic_run_is_scaled_without_redoing_a_step(toy: Start) -> None:
    run = toy("count", "ranks", steps=2000, resources={"nodes": "1..2"})

    def world() -> int:
        return int((run.run.read_metrics() or [{"world": 0}])[-1]["world"])

    until(lambda: world() == 2)
    run.run.request_nodes(1)
    until(lambda: world() == 1)
    run.run.request_nodes(2)
    until(lambda: world() == 2)
    run.backend.cancel(run.run)
    run.finish()
    assert run.run.attempts() == [1]
    steps = run.steps()
    first = next(m["step"] for m in run.run.read_metrics() if m["world"] == 2)
    assert steps[first - 1 :] == list(range(first, max(steps) + 1)), "who joins or leaves costs no step"


def test_the_time_limit_requeues(toy: Start) -> None:
    resources = {"time_limit_minutes": 0.15, "grace_seconds": 5.0}
    run = toy("count", "ranks", steps=100, resources=resources)
    until(lambda: run.run.outcome(1))
    first = run.run.outcome(1)
    assert first is not None
    assert (first.state, first.cause) == (RunState.REQUEUED, "stopped: time limit")
    assert run.finish().state is RunState.SUCCEEDED
    assert run.steps() == list(range(1, 101))


def test_cancel_saves_and_ends_for_good(toy: Start) -> None:
    run = toy("count", "ranks", steps=2000)
    run.reach(5)
    run.backend.cancel(run.run)
    outcome = run.finish()
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled after saving")
    assert run.run.attempts() == [1]


def test_agents_leave_when_their_supervisor_is_killed(toy: Start) -> None:
    run = toy("count", "ranks", steps=2000, resources={"nodes": 2})
    run.reach(5)
    rank = psutil.Process(run.rank_pid(0))
    run.supervisor().kill()
    run.disturbed = True
    until(lambda: not rank.is_running(), Patience.START)
    assert run.state.word == "lost"
    assert "ropewalk resume" in run.state.reason
    before = run.steps()
    run.handle = run.backend.submit(run.run, run.resources)
    until(lambda: len(run.steps()) > len(before))
    run.backend.cancel(run.run)
    run.finish()
    assert run.steps()[len(before)] == before[-1] + 1, "resumed where it was saved"


TWO_RANKS = {"nodes": 1, "ranks_per_node": 2}
TWO_NODES = {"nodes": 2}
SHORT = 4.0  # seconds after which a sleeping rank of most of these tests hangs, in place of 15
HANGS_SOAK = pytest.mark.soak("make test stops a rank, lets one sleep in its loader, and has a loader that computes")


def messages(run: ToyRun, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.run.read_events() if event["event"] == kind]


def finish_after_hang(run: ToyRun) -> dict[int, dict[str, Any]]:
    """The run succeeds in one attempt. Returns where the ranks stood when they were replaced."""
    patience.until(lambda: run.state.word in {"ended", "lost"}, Patience.STEP)
    outcome = run.run.last_outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome.cause
    assert run.run.attempts() == [1]
    assert run.steps() == list(range(1, run.run.record["config"]["steps"] + 1)), "it goes on where it was saved"
    hangs = messages(run, "ranks_hung")
    files = {path.name for path in (run.run.path / hangs[0]["stacks"]).iterdir()}
    assert files == {f"node-{event['node']}.txt" for event in hangs}
    return {rank["rank"]: rank for event in hangs for rank in event["ranks"]}


@pytest.mark.parametrize("resources", [pytest.param(TWO_RANKS, marks=HANGS_SOAK), TWO_NODES], ids=["two ranks", "two nodes"])
def test_a_stopped_rank_is_replaced_at_once(toy: Start, resources: dict[str, int]) -> None:
    """None of its peers gets an error: they wait for it in a collective, for as many minutes as that may take."""
    run = toy("beat", "ranks", steps=50, stuck={"rank": 1, "step": 25, "how": "stop"}, resources=resources)
    places = finish_after_hang(run)
    assert "_get_stuck (tests/fakes/toy.py:" in places[1]["where"]
    assert places[1]["state"] == "stopped"
    assert messages(run, "ranks_hung")[0]["seconds"] < 2.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "resources", "pause", "limit"),
    [
        pytest.param("loader", TWO_NODES, 0.02, SHORT, id="loader"),
        pytest.param("loader", TWO_NODES, 0.02, 15.0, id="loader-15 seconds", marks=HANGS_SOAK),
        pytest.param("asleep", {"nodes": 1}, 0.02, 15.0, id="alone", marks=HANGS_SOAK),
        *(
            pytest.param(how, TWO_RANKS, 0.02, 15.0, id=f"{how}-two ranks", marks=HANGS_SOAK)
            for how in ("asleep", "data", "loader")
        ),
        *(pytest.param(how, TWO_NODES, 2.0, 15.0, id=f"{how}-long steps", marks=HANGS_SOAK) for how in ("asleep", "loader")),
    ],
)
def test_a_rank_that_sleeps_is_replaced_after_15_seconds_or_ten_steps(
    toy: Start, how: str, resources: dict[str, int], pause: float, limit: float
) -> None:
    steps, stuck = (50, 25) if pause < 1 else (14, 10)
    culprit = resources.get("ranks_per_node", resources["nodes"]) - 1
    settings = {"steps": steps, "stuck": {"rank": culprit, "step": stuck, "how": how}, "pause": pause, "asleep_seconds": limit}
    run = toy("beat", "ranks", resources=resources, **settings)
    places = finish_after_hang(run)
    assert not messages(run, "ranks_slow")
    hangs = messages(run, "ranks_hung")
    assert {event["node"] for event in hangs} == set(range(resources["nodes"])), "each node reports its own ranks"
    assert max(event["seconds"] for event in hangs) >= max(limit, 10 * pause), "the other node's rank may have come later"
    assert "_get_stuck (tests/fakes/toy.py:" in places[culprit]["where"]
    if culprit:
        assert "all_reduce in beat (tests/fakes/toy.py:" in places[0]["where"]


@pytest.mark.soak("test_heartbeat.py simulates the limit; make test has a rank whose loader computes, and one that sleeps")
def test_a_rank_that_computes_is_replaced_only_after_hung_seconds(toy: Start) -> None:
    settings = {"stuck": {"rank": 1, "step": 25, "how": "python"}, "retries": {"hung_seconds": 8}, "asleep_seconds": SHORT}
    run = toy("beat", "ranks", steps=50, resources=TWO_NODES, **settings)
    finish_after_hang(run)
    [slow] = messages(run, "ranks_slow")
    assert (slow["node"], slow["step"], slow["allowed_seconds"]) == (1, 25, 8.0)
    [rank] = slow["ranks"]
    assert (rank["rank"], rank["phase"], rank["activity"]) == (1, "step", "computes")
    assert "_get_stuck (tests/fakes/toy.py:" in rank["where"]
    waited = {event["node"]: event["seconds"] for event in messages(run, "ranks_hung")}
    assert waited[1] >= 8.0, "the rank of node 0 may have come to the collective later"


@pytest.mark.slow
def test_a_rank_whose_loader_computes_is_slow_and_not_hung(toy: Start) -> None:
    stuck = {"rank": 1, "step": 25, "how": "busy loader", "seconds": 2 * SHORT}
    run = toy("beat", "ranks", steps=50, stuck=stuck, asleep_seconds=SHORT, resources=TWO_RANKS)
    assert run.finish().state is RunState.SUCCEEDED
    [slow] = messages(run, "ranks_slow")
    assert [(rank["rank"], rank["phase"], rank["activity"]) for rank in slow["ranks"]] == [(1, "data", "computes")]
    assert not messages(run, "ranks_hung")


@pytest.mark.soak("a stop of seconds; make test runs test_a_group_without_heartbeats_never_hangs")
def test_a_run_that_wants_no_watch_is_not_watched(toy: Start) -> None:
    settings = {"stuck": {"rank": 1, "step": 10, "how": "stop"}, "retries": {"hung_seconds": None}}
    run = toy("beat", "ranks", steps=20, resources={"nodes": 2}, **settings)
    until((run.run.path / "stuck.json").exists)
    time.sleep(2.5)  # longer than a watched rank may be stopped
    os.kill(run.rank_pid(1), signal.SIGCONT)
    patience.until(lambda: run.state.word in {"ended", "lost"}, Patience.STEP)
    assert run.steps() == list(range(1, 21))
    assert not messages(run, "ranks_hung")


@pytest.mark.soak("test_heartbeat.py simulates an agent that stood still; make test stops a rank")
def test_an_agent_that_stands_still_with_its_ranks_is_no_hang(toy: Start) -> None:
    run = toy("beat", "ranks", steps=100, resources={"nodes": 2})
    run.reach(20)
    agent = next(a["pid"] for a in read_lines(run.run.attempt_dir(1) / "agents.jsonl") if a["node"] == 1)
    os.killpg(agent, signal.SIGSTOP)
    before = run.steps()[-1]
    time.sleep(2.5)  # longer than a rank may be stopped
    os.killpg(agent, signal.SIGCONT)
    run.reach(before + 5)
    assert run.finish().state is RunState.SUCCEEDED
    assert not messages(run, "ranks_hung")


@pytest.mark.parametrize(
    "resources",
    [TWO_NODES, pytest.param(TWO_RANKS, marks=pytest.mark.soak("make test has them on two nodes"))],
    ids=["two nodes", "two ranks"],
)
def test_ranks_that_do_not_notice_that_another_died_are_not_waited_for(toy: Start, resources: dict[str, int]) -> None:
    """On its own node they do not hear a SIGTERM; on others they look as if they might want to save."""
    run = toy("deaf", "ranks", resources=resources)
    patience.until(lambda: len([e for e in run.run.read_events() if e["event"] == "deaf"]) == 2, Patience.START)
    os.kill(run.rank_pid(0), signal.SIGSTOP)
    os.kill(run.rank_pid(1), signal.SIGKILL)
    patience.until(lambda: run.state.word in {"ended", "lost"}, Patience.SIGNAL)
    assert run.run.results() == {"group": 2}
    assert run.run.attempts() == [1]
