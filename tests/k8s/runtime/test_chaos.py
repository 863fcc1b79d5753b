"""A real training run on real Kubernetes, disturbed in every way that Kubernetes has, ends with the parameters of one left in
peace."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, weights
from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.queueing import drop_queue, make_queue, urgent
from tests.patience import Patience, until

log = logging.getLogger(__name__)

STEPS = 500  # so many that the run is at work still when a cut node is back
BATCH = 8
EVERY = 10

# a process that submits ends soon, and closes its connection to the API server then
unclosed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.soak("two minutes; test_training.py has a stop and a dead node"), pytest.mark.slow, unclosed]


@dataclass
class Scene:
    """A cluster of three nodes, a queue with room for all of them, and a run on two."""

    cluster: Cluster
    namespace: Namespace
    data: Path

    def train(self, on: str, **resources: Any) -> RunDir:
        config = {
            "data": str(self.data),
            "model": {"config": TINY},
            "seq_len": 32,
            "steps": STEPS,
            "batch": {"global_batch": BATCH, "micro_batch": 2},
            "checkpoint": {"every_steps": EVERY},
            "validation": {"every_steps": 1000, "max_sequences": 4},
            "resources": {"nodes": 2, "cpus": 2, "grace_seconds": 45, **resources},
        }
        return submit("pretrain", PretrainConfig.model_validate(config), on)

    def evict_leader(self, run: RunDir) -> None:
        self._evict(leader(run))

    def evict_other(self, run: RunDir) -> None:
        self._evict(self._other(run))

    def _evict(self, pod: str) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace.name}}
        path = f"/api/v1/namespaces/{self.namespace.name}/pods/{pod}/eviction"
        self.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))

    def preempt(self, run: RunDir) -> None:
        """Until the run has left."""
        urgent(self.namespace, "urgent", cpus=3)
        ended(run, run.attempts()[-1])
        self.namespace.kubectl("delete", "job", "urgent", "--wait=false")

    def kill_node(self, run: RunDir) -> None:
        """For good, but there is a spare."""
        self.cluster.kill_node(self._node(self._other(run)))

    def cut_node(self, run: RunDir) -> None:
        """Cut off the leader's node; its pod lives on unseen."""
        self.cluster.mend()
        self.cluster.cut_node(self._node(leader(run)))

    def lose_api(self, run: RunDir) -> None:
        """For a while, in which nobody can ask anything, and the run takes its steps."""
        self.cluster.stop_api()
        reach(run, max(steps_of(run, run.attempts()[-1])) + 5)
        self.cluster.mend()

    def _other(self, run: RunDir) -> str:
        names = [p["metadata"]["name"] for p in self.namespace.pods() if p["status"]["phase"] == "Running"]
        return next(name for name in names if name != leader(run) and name.startswith(run.id))

    def _node(self, pod: str) -> str:
        return str(next(p["spec"]["nodeName"] for p in self.namespace.pods() if p["metadata"]["name"] == pod))


@pytest.fixture
def scene(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lab: Cluster,
    namespace: Namespace,
) -> Iterator[Scene]:
    monkeypatch.setenv(RUNS_VARIABLE, str(namespace.runs))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    # pods see the volume under the path that this machine sees it under, so that one configuration serves both
    queue = {"queue": make_queue(namespace, 6), "queue_priority": f"{namespace.name}-low"}
    profile = {"backend": "k8s", **namespace.options(claim_path=str(namespace.runs), **queue)}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": profile}))
    yield Scene(lab, namespace, make_dataset(namespace.runs / "data", num_documents=800))
    drop_queue(namespace)


def leader(run: RunDir) -> str:
    return str(run.attempt_details(run.attempts()[-1])["carrier"])


def steps_of(run: RunDir, attempt: int) -> list[int]:
    return [m["step"] for m in run.read_metrics() if m["attempt"] == attempt and "train/loss" in m]


def reach(run: RunDir, step: int) -> None:
    until(lambda: max((m["step"] for m in run.read_metrics()), default=0) >= step, Patience.RUN)


def next_attempt(run: RunDir, old: int) -> int:
    """The one that follows, once it has completed three steps or is over."""

    def there() -> int | None:
        newest = run.attempts()[-1]
        return newest if newest > old and (len(steps_of(run, newest)) >= 3 or run.outcome(newest)) else None

    result: int = until(there, Patience.RUN)
    return result


def ended(run: RunDir, attempt: int) -> Outcome:
    result: Outcome = until(lambda: run.outcome(attempt), Patience.RUN)
    return result


def succeed(run: RunDir) -> RunDir:
    wait(run)
    last = run.last_outcome()
    assert last is not None
    assert last.state is RunState.SUCCEEDED, last
    return run


def steps_are_all_there(run: RunDir) -> None:
    """Check that the attempts together have every step at its place in the data; an announced stop repeats none."""
    lines = [m for m in run.read_metrics() if "train/loss" in m]
    assert {m["step"]: m["train/position"] for m in lines} == {step: step * BATCH for step in range(1, STEPS + 1)}
    for attempt in run.attempts()[1:]:
        before = max(m["step"] for m in lines if m["attempt"] < attempt)
        first = steps_of(run, attempt)[0]
        if ended(run, attempt - 1).exit_code == 85:
            assert first == before + 1, f"attempt {attempt} repeats or leaves out a step"
        else:
            assert before - EVERY <= first <= before + 1, "more was lost than since the last checkpoint"


def test_evicted_preempted_killed_and_cut_off_it_learns_the_same(scene: Scene) -> None:
    run = scene.train("lab")
    plan: list[tuple[int, Callable[[RunDir], None]]] = [
        (85, scene.evict_leader),
        (85, scene.evict_other),
        (85, scene.preempt),
        (143, scene.kill_node),
        (143, scene.cut_node),
    ]
    attempt, report = 0, {}
    for code, disturb in plan:
        attempt = next_attempt(run, attempt)
        report[attempt] = time.time()
        disturb(run)
        assert ended(run, attempt).exit_code == code, ended(run, attempt)
    attempt = next_attempt(run, attempt)
    written = len(run.read_metrics())
    scene.cluster.mend()  # the old pod lives, and sees its run again
    scene.lose_api(run)
    succeed(run)
    assert {m["attempt"] for m in run.read_metrics()[written:]} == {attempt}, "nothing of an old attempt has landed"
    steps_are_all_there(run)
    for number, since in report.items():
        first = min(m["time"] for m in run.read_metrics() if m["attempt"] > number and "train/loss" in m)
        log.info("attempt %d, %s: %.1f s to the next step", number, plan[number - 1][1].__name__, first - since)

    peaceful = succeed(scene.train("local"))
    learned = weights(run, STEPS)
    assert any("exp_avg" in name for name in learned), "the optimizer's state is compared too"
    assert equal(weights(peaceful, STEPS), learned)
