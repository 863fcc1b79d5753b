"""A trial's handling of a finished run while others act on it or have died."""

import os
from pathlib import Path

import pytest

from ropewalk.cluster.backends.local.processes import record_supervisor
from ropewalk.cluster.errors import AlreadyRunningError, BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.sweep.config import SweepContext
from ropewalk.jobs.orchestration.sweep.records import WITH_THE_SWEEP, TrialRecord, TrialState, read_record, write_record
from ropewalk.jobs.orchestration.sweep.trials.trial import TrialFollower
from ropewalk.jobs.runs.submit.launcher import ask, launcher
from tests.jobs.sweeping import sweep_config

CANCELLED = Outcome(state=RunState.CANCELLED, exit_code=85, cause="cancelled after saving", ended=1.0)


@pytest.fixture
def context(tmp_path: Path) -> SweepContext:
    """A sweep whose only trial has a run that was cancelled, and a driver that has not told trials to stop yet."""
    sweep = RunDir.create("sweep", {"job": "sweep", "cluster": "local"}, tmp_path)
    run = RunDir.create("trial", {"job": "pretrain", "cluster": "local", "config": {}}, tmp_path)
    for each in (sweep, run):
        each.begin_attempt()
    run.write_outcome(1, CANCELLED)
    write_record(sweep, TrialRecord(trial=0, parameters={}, sampled={}, runs=[run.id], state=TrialState.RUNNING))
    return SweepContext(
        sweep=sweep,
        attempt=1,
        config=sweep_config(job="pretrain", base={"data": "data", "steps": 20}),
        cluster="local",
        scratch=tmp_path,
        launcher=tmp_path,
        defaults={},
        origin={},
    )


@pytest.mark.parametrize(("with_sweep", "cause"), [(True, WITH_THE_SWEEP), (False, CANCELLED.cause)])
def test_a_run_that_leaves_before_the_driver_hears_of_the_cancel(
    context: SweepContext, monkeypatch: pytest.MonkeyPatch, with_sweep: bool, cause: str
) -> None:
    if with_sweep:
        context.sweep.request_cancel()
    monkeypatch.setattr(SweepContext, "stop_reason", lambda self: "")  # the cancel comes between two looks
    assert TrialFollower(context, 0).next_report()["done"]
    record = read_record(context.sweep, 0)
    assert record is not None
    assert (record.state, record.cause) == (TrialState.CANCELLED, cause)


@pytest.mark.parametrize(("paused", "state"), [(True, TrialState.SUCCEEDED), (False, TrialState.CANCELLED)])
def test_a_run_that_another_actor_has_paused_meanwhile_goes_on(
    context: SweepContext, monkeypatch: pytest.MonkeyPatch, paused: bool, state: TrialState
) -> None:
    """Tune may hand a trial on before the actor that had it is told to take another one, and lets its run leave."""

    def resume(launcher: Path, verb: str, run: RunDir, gpus: str = "") -> None:
        assert verb == "resume"
        number = run.begin_attempt()
        write_json(run.attempt_dir(number) / "result.json", {context.config.metric: 1.0, "step": 20})
        results = {context.config.metric: 1.0, "step": 20}
        run.write_outcome(number, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=2.0, results=results))

    monkeypatch.setattr("ropewalk.jobs.orchestration.sweep.trials.trial.ask", resume)
    monkeypatch.setattr("ropewalk.jobs.orchestration.sweep.trials.trial.await_end", lambda run: True)
    run = RunDir(context.sweep.path.parent / read_record(context.sweep, 0).runs[0])  # type: ignore[union-attr]
    if paused:
        run.event("paused_by_sweep", attempt=1)
    assert TrialFollower(context, 0).next_report()["done"]
    record = read_record(context.sweep, 0)
    assert record is not None
    assert record.state is state


def test_all_leave_at_a_cancel_also_before_the_driver_says_so(context: SweepContext) -> None:
    assert context.stop_reason() == ""
    context.sweep.request_cancel()
    assert context.stop_reason() == "cancelled"


def test_an_end_that_a_kill_kept_from_being_told_is_told_once(context: SweepContext) -> None:
    record = read_record(context.sweep, 0)
    assert record is not None
    record.end(TrialState.SUCCEEDED)
    write_record(context.sweep, record)
    for _ in range(2):
        assert TrialFollower(context, 0).next_report()["done"]
    messages = [(event["event"], event["trial"], event["state"]) for event in context.sweep.read_events()]
    assert messages == [("trial_finished", 0, "SUCCEEDED")]


def test_starting_a_run_under_way_raises_its_own_error(context: SweepContext) -> None:
    run = RunDir.create(
        "trial", {"job": "pretrain", "cluster": "local", "config": {}, "resources": {}}, context.sweep.path.parent
    )
    record_supervisor(run, os.getpid())
    with launcher(context.scratch / "launcher.log", {}, []) as folder, pytest.raises(AlreadyRunningError) as caught:
        ask(folder, "submit", run)
    output = f"{run.id} already has an active process (local:{os.getpid()}); cancel it first: ropewalk cancel {run.id}"
    assert str(caught.value) == output


@pytest.mark.parametrize("error", [AlreadyRunningError("x", "an active Job (k8s:team/x)"), BackendError("no room")])
def test_a_trial_whose_run_is_under_way_already_follows_it(
    context: SweepContext, monkeypatch: pytest.MonkeyPatch, error: BackendError
) -> None:
    def refuse(launcher: Path, verb: str, run: RunDir, gpus: str = "") -> None:
        raise error

    monkeypatch.setattr("ropewalk.jobs.orchestration.sweep.trials.trial.ask", refuse)
    run = RunDir.create("fresh", {"job": "pretrain", "cluster": "local", "config": {}}, context.sweep.path.parent)
    record = TrialRecord(trial=0, parameters={}, sampled={}, runs=[run.id])
    write_record(context.sweep, record)
    trial = TrialFollower(context, 0)
    if isinstance(error, AlreadyRunningError):
        trial._start_or_adopt()
    else:
        with pytest.raises(BackendError, match="no room"):
            trial._start_or_adopt()
    failed = [event["error"] for event in run.read_events() if event["event"] == "submit_failed"]
    assert failed == ([] if isinstance(error, AlreadyRunningError) else ["no room"])
