"""Release of held Jobs by a controller that is killed or gets no answers; no cluster is needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object, end_of
from ropewalk.k8s.backend import K8sBackend
from ropewalk.k8s.names import release_name
from ropewalk.k8s.submission.release_controller import POLLS_PER_JOB_QUERY, SUBMISSION_POLLS, HeldRuns, release_all


class Jobs:
    """A namespace's Jobs; with the admission policy, what runs is changed by its own pods alone."""

    def __init__(self, names: list[str]) -> None:
        self.jobs: dict[str, Object] = {name: {"metadata": {"labels": {}}, "spec": {"suspend": True}} for name in names}
        self.away = 0

    def find(self, kind: str, name: str) -> Object | None:
        return self.jobs.get(name)

    def patch(self, kind: str, name: str, patch: Object) -> None:
        if self.away:
            self.away -= 1
            raise ApiAwayError("the API server does not answer")
        if name not in self.jobs:
            raise NotFoundError(name)
        if not self.jobs[name]["spec"]["suspend"]:
            raise ForbiddenError(f"pod a-gate-abcde may change only its own run, and this is of {name}")
        self.jobs[name]["spec"] |= patch["spec"]

    @property
    def held(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job["spec"]["suspend"]]


class PodKilledError(Exception):
    """The controller's pod is evicted."""


Nap = Callable[[float], None]


def naps(*actions: Callable[[], Any]) -> Nap:
    """Between two looks something happens; at last the pod is killed."""
    left = list(actions)

    def sleep(_: float) -> None:
        if not left:
            raise PodKilledError
        left.pop(0)()

    return sleep


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDir]:
    created = [RunDir.create(f"r{number}", {"job": "command"}, tmp_path) for number in range(4)]
    for run in created:
        run.begin_attempt(name=f"{run.id}-1")
    return created


def succeed(run: RunDir) -> None:
    run.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=1.0))


def names(runs: list[RunDir]) -> list[str]:
    return [f"{run.id}-1" for run in runs]


def release(held: HeldRuns, runs: list[RunDir], jobs: Jobs, sleep: Nap) -> None:
    release_all(held, runs[0].path.parent, cast("Kubernetes", jobs), sleep)


def test_a_pod_that_takes_over_changes_no_run_that_was_released(runs: list[RunDir]) -> None:
    jobs = Jobs(names(runs))
    held = HeldRuns(runs=[run.id for run in runs], number=1, at_once=2)
    with pytest.raises(PodKilledError):
        release(held, runs, jobs, naps())
    assert jobs.held == names(runs[2:])
    succeed(runs[1])
    with pytest.raises(PodKilledError):
        release(held, runs, jobs, naps())
    assert jobs.held == names(runs[3:])


def test_a_run_that_was_cancelled_before_it_had_a_directory_holds_no_place(tmp_path: Path) -> None:
    ids = ["r0", "r1"]
    jobs = Jobs([f"{name}-1" for name in ids])
    looks = [lambda: jobs.jobs.pop("r0-1"), *[lambda: None] * POLLS_PER_JOB_QUERY]
    release_all(HeldRuns(runs=ids, number=1, at_once=1), tmp_path, cast("Kubernetes", jobs), naps(*looks))
    assert jobs.held == []


def test_a_release_that_nobody_answers_is_asked_again(runs: list[RunDir]) -> None:
    jobs = Jobs(names(runs))
    jobs.away = 2
    release(HeldRuns(runs=[run.id for run in runs], number=1), runs, jobs, naps(*[lambda: None] * 3))
    assert jobs.held == []


def test_a_pod_that_takes_over_ends_the_others_of_those_that_will_never_start(runs: list[RunDir]) -> None:
    jobs = Jobs(names(runs))
    runs[0].write_outcome(1, Outcome(state=RunState.FAILED, exit_code=1, cause="a bug", ended=1.0))
    jobs.jobs[f"{runs[1].id}-1"]["spec"] = {"suspend": False, "parallelism": 0}  # by the pod before, which was killed then
    release(HeldRuns(runs=[run.id for run in runs[1:3]], number=1, after=[runs[0].id]), runs, jobs, naps())
    assert jobs.jobs[f"{runs[2].id}-1"]["spec"]["parallelism"] == 0
    for run in runs[1:3]:
        outcome = run.last_outcome()
        assert outcome is not None
        assert outcome.cause.startswith(f"never started: it waited for {runs[0].id}")


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED])
def test_a_run_after_a_failure_or_after_any_end(runs: list[RunDir], state: RunState) -> None:
    jobs = Jobs(names(runs))
    runs[0].write_outcome(1, Outcome(state=state, exit_code=0, cause="as it went", ended=1.0))
    for run, condition in zip(runs[1:3], ("any", "failed"), strict=True):
        release(HeldRuns(runs=[run.id], number=1, after=[f"{condition}:{runs[0].id}"]), runs, jobs, naps())
    assert runs[1].last_outcome() is None
    assert f"{runs[1].id}-1" not in jobs.held
    outcome = runs[2].last_outcome()
    if state is RunState.SUCCEEDED:
        assert outcome is not None
        assert outcome.cause == f"never started: it waited for {runs[0].id} to fail, which ended as SUCCEEDED"
    else:
        assert outcome is None
        assert f"{runs[2].id}-1" not in jobs.held


def test_it_waits_for_jobs_that_are_still_being_created(runs: list[RunDir]) -> None:
    """The controller is there before them, so that a submission that is cut off leaves none that nobody releases."""
    jobs = Jobs([])
    looks = [lambda name=name: jobs.jobs.update(Jobs([name]).jobs) for name in reversed(names(runs))]
    release(HeldRuns(runs=[run.id for run in runs], number=1), runs, jobs, naps(*looks))
    assert len(jobs.jobs) == len(runs)
    assert jobs.held == []


def test_jobs_that_are_never_created_are_given_up(runs: list[RunDir]) -> None:
    jobs = Jobs(names(runs)[1:])
    release(HeldRuns(runs=[run.id for run in runs], number=1), runs, jobs, naps(*[lambda: None] * SUBMISSION_POLLS))
    assert jobs.held == []


def test_late_jobs_are_released_by_a_running_controller(runs: list[RunDir]) -> None:
    """A laptop may sleep in the middle of a submission, whose calls are not answered in order."""
    jobs = Jobs([name for name in names(runs) if not name.startswith(("r1", "r3"))])

    def wake_up() -> None:
        jobs.jobs.update(Jobs([name for name in names(runs) if name.startswith(("r1", "r3"))]).jobs)
        succeed(runs[0])

    held = HeldRuns(runs=[run.id for run in runs], number=1, at_once=2)
    ends = [lambda run=run: succeed(run) for run in runs[1:]]
    release(held, runs, jobs, naps(*[lambda: None] * (SUBMISSION_POLLS + 1), wake_up, *ends))
    assert jobs.held == []


@pytest.mark.parametrize("gone", [False, True])
def test_a_submission_that_took_too_long_puts_its_controller_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, gone: bool
) -> None:
    class Slow(Jobs):
        namespace = "team"

        def create(self, each: Object) -> Object:
            name = each["metadata"]["name"]
            self.jobs[name] = {**each, "metadata": {**each["metadata"], "uid": name}}
            controller = release_name(fresh[0], 1)
            if name != controller and gone:
                self.jobs.pop(controller, None)
            elif name != controller:
                self.jobs[controller]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
            return self.jobs[name]

        def delete(self, kind: str, name: str) -> None:
            self.jobs.pop(name, None)

    monkeypatch.setattr("ropewalk.k8s.backend.check_feasible", lambda *_: None)
    options = {"namespace": "team", "runs": str(tmp_path), "service_account": "ropewalk"}
    backend = K8sBackend(Profile(name="team", backend="k8s", options=options), cast("Kubernetes", jobs := Slow([])))
    fresh = [RunDir.create(f"r{number}", {"job": "command"}, tmp_path) for number in range(4)]
    backend.submit_many(fresh, Resources(), at_once=1)
    assert end_of(jobs.jobs[release_name(fresh[0], 1)]) is None


def test_a_job_that_is_still_being_created_is_ended_too_where_it_can_never_start(runs: list[RunDir]) -> None:
    jobs = Jobs([])
    runs[0].write_outcome(1, Outcome(state=RunState.FAILED, exit_code=1, cause="a bug", ended=1.0))
    held = HeldRuns(runs=[runs[1].id], number=1, after=[runs[0].id])
    release(held, runs, jobs, naps(lambda: jobs.jobs.update(Jobs(names(runs)[1:2]).jobs)))
    assert jobs.jobs[f"{runs[1].id}-1"]["spec"]["parallelism"] == 0


def test_a_submission_that_is_cut_off_has_put_its_controller_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []

    class CutOff(Jobs):
        namespace = "team"

        def create(self, each: Object) -> Object:
            requests.append(each["metadata"]["name"])
            if len(requests) > 2:
                raise KeyboardInterrupt
            return each

    monkeypatch.setattr("ropewalk.k8s.backend.check_feasible", lambda *_: None)
    options = {"namespace": "team", "runs": str(tmp_path), "service_account": "ropewalk"}
    backend = K8sBackend(Profile(name="team", backend="k8s", options=options), cast("Kubernetes", CutOff([])))
    fresh = [RunDir.create(f"r{number}", {"job": "command"}, tmp_path) for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        backend.submit_many(fresh, Resources(), at_once=1)
    assert requests[0] == release_name(fresh[0], 1)


def test_without_a_service_account_no_run_may_wait(runs: list[RunDir]) -> None:
    profile = Profile(name="team", backend="k8s", options={"namespace": "team", "runs": str(runs[0].path.parent)})
    backend = K8sBackend(profile, cast("Kubernetes", Jobs([])))
    fresh = RunDir.create("r9", {"job": "command"}, runs[0].path.parent)
    with pytest.raises(ConfigError, match=r"needs a service account .*rbac\.yaml.*service_account: ropewalk"):
        backend.submit(fresh, Resources(), [runs[0].id])
    assert fresh.attempts() == []
