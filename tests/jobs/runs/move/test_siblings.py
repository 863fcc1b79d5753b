"""Submissions to several clusters: of the runs, exactly one starts, whoever asks first and whatever fails meanwhile."""

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.siblings import GRANTED, SIBLINGS, START_LOCK
from ropewalk.cluster.spec import Outcome, RunState, StopReason
from ropewalk.cluster.supervise import start_lock
from ropewalk.cluster.supervise.start_lock import NO_ANSWER, await_start_lock
from ropewalk.cluster.supervise.supervisor import Supervisor
from ropewalk.jobs.cli import siblings
from ropewalk.jobs.cli.run import _print_notices
from ropewalk.jobs.cli.siblings import StartLocks, sibling_record
from ropewalk.jobs.runs.submit import snapshot
from tests.cluster.test_attempt import Sleepers
from tests.jobs.shell import Shell, pretrain
from tests.patience import Patience, until

CLUSTERS = ("east", "west")
ROOT = Path(__file__).parents[4]


@pytest.fixture
def shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell with two clusters, each with a runs' root of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(shell.home / "state"))
    clusters = yaml.safe_load((shell.home / "clusters.yaml").read_text())
    for name in CLUSTERS:
        clusters[name] = {**clusters["slow"], "runs": str(shell.home / name), "saves": True}
    (shell.home / "clusters.yaml").write_text(yaml.safe_dump(clusters))
    return shell


def submitted(shell: Shell, number: int) -> dict[str, RunDir]:
    """Return the runs of a submission, as `submit --on east,west` leaves them."""
    runs = {}
    for cluster in CLUSTERS:
        record = {"job": "command", "config": {}, "engine": "process", "cluster": cluster, "resources": {"nodes": 1}}
        runs[cluster] = RunDir.create(
            f"race-{number}", record | sibling_record(f"{number}:{','.join(CLUSTERS)}"), shell.home / cluster
        )
        runs[cluster].begin_attempt()
    (shell.home / "state/ropewalk/siblings").mkdir(parents=True, exist_ok=True)
    answers = {cluster: {"run": run.id} for cluster, run in runs.items()}
    write_json(shell.home / f"state/ropewalk/siblings/{number}.json", {"clusters": CLUSTERS, "runs": answers})
    return runs


class Flaky(StartLocks):
    """One of two processes that answer: of some runs it hears nothing, and it is killed between choice and word."""

    def __init__(self, seed: int) -> None:
        super().__init__(lambda _: None)
        self._random = random.Random(seed)

    def _ask(self, cluster: str, holders: Mapping[str, Sequence[str]]) -> siblings.States:
        if self._random.random() < 0.3:
            raise KeyboardInterrupt
        heard = {run: holder for run, holder in holders.items() if self._random.random() < 0.7}
        return super()._ask(cluster, heard)

    def answer_all(self, folder: Path) -> None:
        while any(folder.glob("*.json")):
            try:
                self.look()
            except KeyboardInterrupt:
                continue


@pytest.mark.parametrize("count", [30, pytest.param(100, marks=pytest.mark.soak("200 threads; make test runs 30 races"))])
def test_exactly_one_run_of_each_submission_starts(shell: Shell, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(start_lock, "POLL_SECONDS", 0.5)  # there are two threads a race
    races = [submitted(shell, number) for number in range(count)]
    folder = shell.home / "state/ropewalk/siblings"
    runs = [run for race in races for run in race.values()]
    random.Random(0).shuffle(runs)
    with ThreadPoolExecutor(len(runs) + 2) as pool:
        waits = {run.id: pool.submit(await_start_lock, run, 1, Sleepers(1)) for run in runs}
        answers = [pool.submit(Flaky(seed).answer_all, folder) for seed in range(2)]
        for answer in answers:
            answer.result()
        outcomes = {run: wait.result() for run, wait in waits.items()}
    winners = dict.fromkeys(CLUSTERS, 0)
    for race in races:
        started = [cluster for cluster, run in race.items() if outcomes[run.id] is None]
        assert len(started) == 1
        winners[started[0]] += 1
        loser = outcomes[next(run.id for cluster, run in race.items() if cluster != started[0])]
        assert _outcome(loser) == (RunState.CANCELLED, f"{race[started[0]].id} has started on {started[0]} instead")
    assert min(winners.values()) > 0


class Reclaimed(Sleepers):
    """An allocation that the scheduler takes back."""

    def stop_reason(self) -> str:
        return StopReason.PREEMPTED


def test_nothing_starts_without_an_answer(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    east, west = submitted(shell, 0).values()
    assert _outcome(await_start_lock(west, 1, Reclaimed(1))) == (RunState.PREEMPTED, "stopped: preempted")
    west.request_cancel()
    assert _outcome(await_start_lock(west, 1, Sleepers(1))) == (RunState.CANCELLED, "cancelled before it started")
    monkeypatch.setattr(start_lock, "ANSWER_SECONDS", 0.1)
    assert Supervisor(east, Sleepers(1, ["touch", str(shell.home / "ran")]), "").supervise(1) == 1
    assert _outcome(east.last_outcome()) == (RunState.FAILED, NO_ANSWER)
    assert not (shell.home / "ran").exists()
    east.requests.put(START_LOCK, ("east", east.id))  # later attempts do not ask again
    assert await_start_lock(east, 2, Sleepers(1)) is None


def _outcome(outcome: Outcome | None) -> tuple[RunState, str] | None:
    return None if outcome is None else (outcome.state, outcome.cause)


def test_a_submission_to_two_clusters(shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{shell.home / 'plugin'}:{ROOT}")
    assert "names a cluster twice" in shell.mistake("submit", *pretrain("--on", "east,east"))
    assert "unknown cluster 'north'" in shell.mistake("submit", *pretrain("--on", "east,north"))
    assert "name one cluster" in shell.mistake("submit", *pretrain("--on=east,west", "--after=RUN"))
    names = shell("submit", *pretrain("--on", "east,west")).split()
    east, west = (RunDir(shell.home / cluster / name) for cluster, name in zip(CLUSTERS, names, strict=True))
    assert east.record[SIBLINGS] == west.record[SIBLINGS] != {}
    assert [east.record["cluster"], west.record["cluster"]] == [*CLUSTERS]

    monkeypatch.setattr(snapshot, "code_notice", lambda _: "code: x\n")
    for run in (east, west):
        _print_notices(run)
    assert capsys.readouterr().err.count("code: ") == 1

    messages: list[str] = []
    locks = StartLocks(messages.append)
    locks.look()
    assert not messages  # nobody asks
    with ThreadPoolExecutor() as pool:
        wait = pool.submit(await_start_lock, west, 1, Sleepers(1))
        until(west.read_events, Patience.STEP)
        assert "waits until `ropewalk sync --follow` lets it" in shell("why", west.id)
        while not messages:
            locks.look()
        assert wait.result() is None
    assert messages == [f"{west.id} starts on west; {east.id} does not"]
    assert [line["run"] for line in shell.asked("cancel")] == [east.id] * len(shell.asked("cancel")) != []
    assert GRANTED in [event["event"] for event in west.read_events()]
    locks.look()
    assert not [*(shell.home / "state/ropewalk/siblings").glob("*.json")]  # settled
    assert f"{west.id} has started on west instead" in shell.mistake("resume", east.id)
    east.write_outcome(1, Outcome(state=RunState.CANCELLED, exit_code=0, cause="cancelled", ended=1.0))
    for command in ("why", "show"):
        assert f"ropewalk why {west.id} --on west" in shell(command, east.id)
        assert "ropewalk resume" not in shell.out


def test_a_submission_that_fails_on_one_cluster_starts_nowhere(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "module_command", lambda *_: ["sh", "-c", "echo error: the queue is closed >&2; exit 1"])
    assert "nothing was submitted to east" in shell("submit", *pretrain("--on", "east,closed"), expect=1) + shell.err
    with pytest.raises(BackendError, match="ropewalk cancel one"):
        siblings._submit("east", "0:east,west", [], [], ["one"])
