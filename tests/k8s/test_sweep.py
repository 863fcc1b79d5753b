"""A sweep on Kubernetes: its driver is a pod, its trials are Jobs that the driver submits; both are taken away, and nothing is
decided otherwise, done again, or left behind.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.code_copy import digest_on_disk
from ropewalk.cluster.run.directory import CODE_FOLDER, RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.checks import refuse_unreachable
from ropewalk.jobs.runs.submit.submit import create_runs
from tests.fakes.searched import make_plugin
from tests.jobs.shell import Shell
from tests.jobs.sweeping import Swept, sweep_config
from tests.k8s.cluster import Namespace
from tests.k8s.queueing import drop_queue, make_queue, urgent
from tests.patience import Patience, until

# a process that asks ends soon, and closes its connection to the API server then
unclosed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone_with_ray"), unclosed]

Start = Callable[..., Swept]


SMALL: dict[str, Any] = {"cpus": 1, "grace_seconds": 20}
KEYS: dict[str, Any] = {
    "base": {"steps": 60, "pause": 0.3, "gate": 20, "resources": SMALL},
    "space": {"optim.lr": {"grid": [0.1, 10.0, 5.0]}},
    "search": "grid",
    "max_concurrent": 1,  # so that the order of results is the same each time
    "scheduler": "asha",
    "asha": {"grace_steps": 10},
    "resources": SMALL,
}


def with_plugin(run: RunDir) -> RunDir:
    """The run with code that has the toy as well: another copy of another name, since one that was changed is not used."""
    assert run.code is not None
    make_plugin(run.code)
    old = str(run.record["code"]["snapshot"])
    folder = run.path.parent / CODE_FOLDER
    new = digest_on_disk(folder / old)
    (folder / old).rename(folder / new)
    record = run.path / "run.yaml"
    record.write_text(record.read_text().replace(old, new))
    return RunDir(run.path)


@pytest.fixture
def start(namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Submit a sweep to the test's namespace, with keys of the cluster's profile; its code brings the toy along."""
    monkeypatch.syspath_prepend(str(make_plugin(tmp_path / "plugin")))
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    backends = []

    def begin(profile: dict[str, Any], **keys: Any) -> Swept:
        options = namespace.options(**profile)
        options["environment"] |= {"WANDB_MODE": "disabled"}
        (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "k8s", **options}}))
        # Ray gives up its start after 30 s, and that is counted as a bug
        backend, config = load_backend("lab"), sweep_config(**{"retries": {"bugs": 10}, **keys})
        backends.append(backend)
        run = create_runs(backend, "sweep", [config], "lab", ())[0]
        run = with_plugin(run)
        backend.submit(run, config.resources)
        return Swept(run)

    yield begin
    for backend in backends:
        backend.kube.close()  # type: ignore[attr-defined]


@pytest.fixture
def queue(namespace: Namespace) -> Iterator[Callable[[int], dict[str, str]]]:
    """Keys of a profile for a queue of so many CPUs."""
    yield lambda cpus: {"queue": make_queue(namespace, cpus), "queue_priority": f"{namespace.name}-low"}
    drop_queue(namespace)


@pytest.fixture
def ropewalk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    return Shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def trusted(namespace: Namespace) -> None:
    """Pods may submit runs."""
    account = f"--serviceaccount={namespace.name}:ropewalk"
    namespace.kubectl("create", "rolebinding", "ropewalk-sweeps", "--role=ropewalk-sweeps", account)


def evict(namespace: Namespace, run: RunDir) -> None:
    """The pod that carries a run."""
    pod = str(run.attempt_details(run.attempts()[-1])["carrier"])
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace.name}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
    namespace.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def at_work(namespace: Namespace) -> list[str]:
    """Pods that run, or will."""
    return [pod["metadata"]["name"] for pod in namespace.pods() if pod["status"]["phase"] in {"Pending", "Running"}]


def jobs_of_runs(namespace: Namespace) -> list[str]:
    """Jobs that are there and are not leaving."""
    result = namespace.items("Job", "ropewalk/role=run")
    return [job["metadata"]["name"] for job in result]


def outcomes(run: RunDir) -> list[tuple[str, int]]:
    results = [run.outcome(number) for number in run.attempts()]
    return [(outcome.state.value, outcome.exit_code) for outcome in results if outcome is not None]


@pytest.mark.soak("minutes of Ray in pods; make test runs chaos/test_sweep.py")
@pytest.mark.usefixtures("trusted")
def test_a_preempted_trial_and_an_evicted_driver_change_no_decision(
    start: Start, namespace: Namespace, queue: Callable[[int], dict[str, str]]
) -> None:
    sweep = start(queue(4), **KEYS)

    until(lambda: any(12 in steps for steps in sweep.steps().values()), Patience.CLUSTER, sweep.said)
    first = sweep.runs()[0]
    urgent(namespace, "urgent", cpus=3)  # of the four the trial has one, and is the last that was admitted
    until(lambda: first.outcome(1), describe=sweep.said)
    namespace.kubectl("delete", "job", "urgent", "--wait=false")
    until(lambda: first.attempts() == [1, 2], describe=sweep.said)
    evict(namespace, sweep.run)
    until(lambda: sweep.events("trial_adopted"), Patience.CLUSTER, sweep.said)
    (namespace.runs / "gate").touch()  # so long the trial has waited
    results = sweep.finish()

    ends = outcomes(sweep.run)
    assert (ends[0], ends[-1]) == (("REQUEUED", 85), ("SUCCEEDED", 0))  # between them Ray may have been too slow to start
    assert {event["run"] for event in sweep.events("trial_adopted")} == {first.id}
    assert outcomes(first) == [("PREEMPTED", 85), ("SUCCEEDED", 0)]
    assert sweep.steps()[first.id] == list(range(1, 61)), "no step is lost, none is done again"
    assert results["best_trial"] == 0
    decided = [(record.state.value, record.stopped_at, len(record.runs)) for record in sweep.records()]
    assert decided == [("SUCCEEDED", None, 1), ("STOPPED", 10, 1), ("STOPPED", 10, 1)]
    until(lambda: not at_work(namespace), Patience.START, lambda: at_work(namespace))


@pytest.mark.soak("minutes of Ray in pods; make test runs chaos/test_sweep.py")
@pytest.mark.usefixtures("trusted")
def test_a_laptop_that_does_not_see_the_volume_shows_and_cancels_it(
    start: Start,
    namespace: Namespace,
    queue: Callable[[int], dict[str, str]],
    ropewalk: Shell,
) -> None:
    """One trial runs, and one waits in the queue."""
    base = {"steps": 3000, "pause": 0.05, "resources": SMALL}
    sweep = start({**queue(2), "runs": None}, base=base, trials=3, max_concurrent=2, resources=SMALL)
    there = Swept(RunDir(namespace.runs / sweep.run.id))
    until(lambda: len(there.runs()) == 2 and any(there.steps().values()), Patience.CLUSTER, there.said)

    shown = json.loads(ropewalk("show", sweep.run.id, "--json"))
    assert sorted(trial["run_state"] for trial in shown["trials"]) == ["PENDING", "RUNNING"]
    assert shown["best"]["metric"] is not None
    result = yaml.safe_load(ropewalk("best", sweep.run.id))
    assert result["optim"]["lr"] == shown["best"]["parameters"]["optim.lr"]

    assert "it saves a checkpoint and exits" in ropewalk("cancel", sweep.run.id)
    ropewalk("wait", sweep.run.id, expect=1)
    assert {record.state.value for record in there.records()} == {"CANCELLED"}
    assert [outcomes(run)[-1][0] for run in there.runs()] == ["CANCELLED"] * 2
    until(lambda: not jobs_of_runs(namespace), Patience.STEP, lambda: jobs_of_runs(namespace))


@pytest.mark.soak("make test runs chaos/test_sweep.py")
def test_trials_in_the_sweeps_own_pods_go_on_with_the_next_head(start: Start, namespace: Namespace) -> None:
    """An Indexed Job of two pods, with one trial at a time over both. It submits nothing, and needs no right to do so."""
    nodes = {"nodes": 2, **SMALL}
    sweep = start({}, allocation=True, base={"steps": 100, "pause": 0.1, "resources": nodes}, trials=2, resources=nodes)
    until(lambda: any(sweep.steps().values()), Patience.CLUSTER, sweep.said)
    first = sweep.runs()[0]
    agents = read_lines(first.attempt_dir(1) / AGENTS)
    assert len({agent["address"] for agent in agents}) == 2, "a node of the trial in each pod"
    evict(namespace, sweep.run)
    until(lambda: len(first.attempts()) == 2, Patience.CLUSTER, sweep.said)
    assert sweep.finish(patience=Patience.CLUSTER)["trials"] == {"SUCCEEDED": 2}
    assert outcomes(sweep.run)[0] == ("REQUEUED", 85)
    assert all(steps == list(range(1, 101)) for steps in sweep.steps().values()), "what was saved is not done again"
    assert jobs_of_runs(namespace) == [sweep.run.attempt_details(1)["name"]], "its trials are no Jobs"
    until(lambda: not at_work(namespace), Patience.STEP, lambda: at_work(namespace))


@pytest.mark.soak("Ray in pods; make test checks permissions in k8s/submission, and runs chaos/test_sweep.py")
def test_pods_that_may_not_submit_say_so_at_once(start: Start, namespace: Namespace) -> None:
    sweep = start({}, trials=2, resources=SMALL)
    sweep.finish(RunState.FAILED)
    outcome = sweep.run.last_outcome()
    assert outcome is not None
    assert "submits its trials, but may not create jobs" in outcome.cause
    command = f"kubectl create rolebinding ropewalk-sweeps -n {namespace.name} --role=ropewalk-sweeps"
    assert f"{command} --serviceaccount={namespace.name}:ropewalk`" in outcome.cause
    assert (outcome.exit_code, sweep.run.attempts(), sweep.records()) == (42, [1], [])


def test_pods_know_no_other_cluster_than_their_own() -> None:
    ours, other = (Profile(name=name, backend="k8s", options={"context": name, "claim": "runs"}) for name in ("team", "big"))
    with pytest.raises(ConfigError, match=r"cluster=big: its context differs from that of team.*run the sweep's driver here"):
        refuse_unreachable(ours, other)
    refuse_unreachable(ours, Profile(name="urgent", backend="k8s", options={"context": "team", "queue": "urgent"}))
    refuse_unreachable(Profile(name="local", backend="local"), other)
