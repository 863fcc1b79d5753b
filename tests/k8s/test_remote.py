"""A laptop that does not see the volume: what it submits gets there, and what it wants to see comes back through a pod."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import Profile
from cluster.config import Resources
from cluster.run_dir import RunDir
from cluster.spec import RunState
from jobs.logs import log_files
from k8s.backend import K8sBackend
from tests.k8s.cluster import Namespace
from tests.slurm.conftest import until

ROOT = Path(__file__).resolve().parents[2]
RESOURCES = Resources.model_validate({"grace_seconds": 5, "cpus": 1})

Make = Callable[..., RunDir]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run on this machine, with code of its own: the toys."""
    code = tmp_path / ".code/toys"
    for name in ("tests/__init__.py", "tests/fakes/__init__.py", "tests/fakes/toy.py"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes((ROOT / name).read_bytes())

    def create(entry: str = "tick", **config: Any) -> RunDir:
        resources = RESOURCES.model_dump(mode="json")
        record = {"job": "toy", "entry": f"tests.fakes.toy:{entry}", "engine": "process", "preload": [], "sidecars": []}
        own = {"config": config, "resources": resources, "cluster": "lab", "code": {"snapshot": "toys", "folder": ""}}
        return RunDir.create("toy", {**record, **own}, tmp_path)

    return create


def test_there_and_back(namespace: Namespace, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    backend = K8sBackend(Profile(name="lab", backend="k8s", options={**namespace.options(), "runs": None}))
    with closing(backend.kube.http):
        run, dependant = make(steps=10_000, pause=0.1), make(steps=2)
        backend.submit(run, RESOURCES)
        backend.submit(dependant, RESOURCES, [run.id])

        def step(least: int) -> bool:
            backend.fetch(run)
            return max((line["step"] for line in run.read_metrics()), default=0) >= least

        until((namespace.runs / run.id / "metrics.jsonl").exists, 60)
        until(lambda: step(5), 30)
        assert f"{run.id} lies on volume runs of namespace {namespace.name}, which this machine does not see" in caplog.text
        assert (namespace.runs / ".code/toys/tests/fakes/toy.py").exists()
        assert backend.states([run])[run.id].state is RunState.RUNNING

        backend.cancel(run)
        until(lambda: backend.states([run])[run.id].state is RunState.CANCELLED, 60)
        until(lambda: backend.states([dependant])[dependant.id].state is RunState.CANCELLED, 60)
        assert f"it waited for {run.id}, which ended as CANCELLED" in backend.states([dependant])[dependant.id].reason

        backend.fetch(run)  # by a pod that only reads, since the run's own has left
        last = max(line["step"] for line in run.read_metrics())
        run.withdraw_cancel()
        backend.submit(run, RESOURCES)
        until(lambda: step(last + 3), 60)
        assert run.attempts() == [1, 2]
        assert [line["step"] for line in run.read_metrics()] == list(range(1, len(run.read_metrics()) + 1))
        assert {prefix for prefix, _ in log_files(run)} >= {"1.node-0", "1.rank-0"}
        backend.cancel(run)
