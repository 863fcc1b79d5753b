"""A laptop that does not see the volume: what it submits gets there, and what it wants to see comes back through a pod."""

import io
import secrets
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ropewalk.cluster.backends.base import BackendState, Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.code_copy import digest_on_disk
from ropewalk.cluster.run.directory import CODE_FOLDER, RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.show.logs import log_files
from ropewalk.jobs.runs.show.remote import export_on_cluster, freshen
from ropewalk.jobs.runs.show.status import settle
from ropewalk.jobs.runs.submit.resume import scale
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.k8s.backend import K8sBackend
from ropewalk.k8s.names import ROLE_LABEL
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import pretrain_config, weights
from tests.k8s.cluster import Namespace
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[3]
RESOURCES = Resources.model_validate({"grace_seconds": 5, "cpus": 1})

Make = Callable[..., RunDir]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run on this machine, with code of its own: the toys."""
    code = tmp_path / "toys"
    for name in ("tests/__init__.py", "tests/fakes/__init__.py", "tests/fakes/toy.py"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes((ROOT / name).read_bytes())
    digest = digest_on_disk(code)
    (tmp_path / CODE_FOLDER).mkdir()
    code.rename(tmp_path / CODE_FOLDER / digest)

    def create(entry: str = "tick", **config: Any) -> RunDir:
        resources = RESOURCES.model_dump(mode="json")
        record = {"job": "toy", "entry": f"tests.fakes.toy:{entry}", "engine": "process", "preload": [], "sidecars": []}
        ours = {"config": config, "resources": resources, "cluster": "lab", "code": {"snapshot": digest, "folder": ""}}
        return RunDir.create("toy", {**record, **ours}, tmp_path)

    return create


def test_there_and_back(namespace: Namespace, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    backend = K8sBackend(Profile(name="lab", backend="k8s", options={**namespace.options(), "runs": None}))
    with closing(backend.kube):
        run, dependant = make(steps=10_000, pause=0.1), make(steps=2)
        backend.submit(run, RESOURCES)
        backend.submit(dependant, RESOURCES, [run.id])

        def step(least: int) -> bool:
            backend.sync(run)
            return max((line["step"] for line in run.read_metrics()), default=0) >= least

        until((namespace.runs / run.id / "metrics.jsonl").exists, Patience.STEP)
        until(lambda: step(5), Patience.START)
        assert f"{run.id} is on volume runs of namespace {namespace.name}, which is not mounted here" in caplog.text
        assert run.code is not None
        assert (namespace.runs / run.code.relative_to(run.path.parent) / "tests/fakes/toy.py").exists()
        assert backend.states([run])[run.id].state is RunState.RUNNING

        backend.cancel(run)
        until(lambda: backend.states([run])[run.id].state is RunState.CANCELLED, Patience.STEP)
        until(lambda: backend.states([dependant])[dependant.id].state is RunState.CANCELLED, Patience.STEP)
        assert f"it waited for {run.id}, which ended as CANCELLED" in backend.states([dependant])[dependant.id].reason

        backend.sync(run)  # by a pod that only reads, since the run's own has left
        last = max(line["step"] for line in run.read_metrics())
        run.withdraw_cancel()
        backend.submit(run, RESOURCES)
        until(lambda: step(last + 3), Patience.STEP)
        assert run.attempts() == [1, 2]
        steps = [line["step"] for line in run.read_metrics()]
        assert steps == list(range(1, len(steps) + 1))
        assert {prefix for prefix, _ in log_files(run)} >= {"1.node-0", "1.rank-0"}
        backend.cancel(run)


@pytest.mark.soak("test_release_controller.py kills it without pods; make test holds a run in test_there_and_back")
def test_held_runs_start_although_the_first_and_the_controller_are_deleted(namespace: Namespace, make: Make) -> None:
    backend = K8sBackend(Profile(name="lab", backend="k8s", options={**namespace.options(), "runs": None}))
    with closing(backend.kube):
        first, *others = make(steps=10_000, pause=0.1), make(steps=2), make(steps=2)
        backend.submit_many([first, *others], RESOURCES, at_once=1)
        until((namespace.runs / first.id / "metrics.jsonl").exists, Patience.STEP)
        assert {backend.states([run])[run.id].word for run in others} == {"Turn"}
        backend.cancel(first)
        (pod,) = (each["metadata"]["name"] for each in namespace.items("Pod", f"{ROLE_LABEL}=gate"))
        namespace.kubectl("delete", "pod", "--grace-period=0", "--force", pod)
        for run in others:
            until(lambda run=run: backend.settle([run])[run.id].state is RunState.SUCCEEDED, Patience.RUN)  # type: ignore[misc]


@pytest.mark.soak("make test runs test_there_and_back")
def test_input_that_is_not_needed_holds_nobody_up(namespace: Namespace, make: Make, tmp_path: Path) -> None:
    """Kubernetes waits for ever for a program that ends before it has read what it was sent."""
    backend = K8sBackend(Profile(name="lab", backend="k8s", options={**namespace.options(), "runs": None}))
    content, archive = secrets.token_bytes(3_000_000), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as stream:
        info = tarfile.TarInfo("module.py")
        info.size = len(content)
        stream.addfile(info, io.BytesIO(content))
    run, code = make(), tmp_path / "sent"
    code.mkdir()
    (code / "module.py").write_bytes(content)
    digest = digest_on_disk(code)
    with closing(backend.kube):
        for _ in range(2):  # the second time it is there already
            backend.reader.upload(run, archive.getvalue(), f".code/{digest}")
        assert (namespace.runs / f".code/{digest}/module.py").read_bytes() == content
        for arguments in (["-m", "ropewalk.k8s.submission.stage_in", "-", "/proc/large"], ["-m", "no_such_module", "-"]):
            with pytest.raises(BackendError, match=r"No such file or directory|No module named"):
                backend.reader._execute(run, [namespace.cluster.python, *arguments], archive.getvalue(), None)


@pytest.mark.soak("make test runs test_there_and_back")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that end with a process
def test_an_elastic_run_is_scaled_and_its_model_comes_back(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training data and checkpoints lie where only pods see them."""
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    profile = {"backend": "k8s", **namespace.options(), "runs": None}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"far": profile}))
    make_dataset(namespace.runs / "data")
    resources = {"nodes": "1..2", "cpus": 1, "grace_seconds": 30}
    config = pretrain_config(Path("/runs/data"), steps=10_000, checkpoint={"every_steps": 1000}, resources=resources)
    run = submit("pretrain", PretrainConfig.model_validate(config), "far")

    def groups() -> list[int]:
        return [event["nodes"] for event in freshen(run).read_events() if event["event"] == "group_formed"]

    until(lambda: groups()[-1:] == [2], Patience.RUN)
    scale(run, 1)
    until(lambda: groups()[-1:] == [1], Patience.STEP)
    assert freshen(run).attempts() == [1]
    list(cancel_runs([run.id]))
    wait(run)
    (run.attempt_dir(1) / "outcome.json").unlink()  # as if nobody had looked before its Job was gone

    def told() -> BackendState | None:
        """A read that a leaving pod cuts off is repeated at the next look, and never guessed."""
        state = settle(run)
        assert state.state.final or "the state is taken from the run's files" in state.reason, state
        return state if state.state.final else None

    ended = until(told)
    assert (ended.state, ended.reason) == (RunState.CANCELLED, "cancelled after saving")
    assert not run.checkpoints.exists(), "they are large, and nobody has asked for them"

    directory = tmp_path / "model"
    assert export_on_cluster(run, directory, None)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in directory.iterdir()}
    step = max(line["step"] for line in run.read_metrics())
    there = weights(RunDir(namespace.runs / run.id), step)
    model = load_file(directory / "model.safetensors")
    assert model
    assert all(torch.equal(there[f"model.{name}"], tensor) for name, tensor in model.items())
