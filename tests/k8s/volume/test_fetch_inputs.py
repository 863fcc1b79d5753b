"""Inputs of the hub for a volume that this machine does not see: a pod fetches them, with the progress shown here."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from huggingface_hub import constants

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.hub import progress
from ropewalk.jobs.runs.submit.inputs import Inputs
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.backend import K8sBackend
from ropewalk.k8s.volume.reader import READER
from tests.fakes.hub import COMMIT, FakeHub, serving
from tests.k8s.cluster import Cluster, Namespace

URL = "{repo_id}/resolve/{revision}/{filename}"
MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 8000}


class LocalPods:
    """A cluster whose pods are programs of this machine; the first connections break."""

    namespace = "team"

    def __init__(self, breaks: int = 0) -> None:
        self.breaks, self.commands = breaks, list[Sequence[str]]()

    def list(self, kind: str, labels: str, fields: str = "") -> Sequence[Object]:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        return [{"metadata": {"name": f"{READER}-1"}, "status": ready}]

    def execute(self, pod: str, command: Sequence[str], stdin: Any, stdout: Any) -> None:
        self.commands.append(command)
        if len(self.commands) <= self.breaks:
            raise ApiAwayError("the connection broke")
        result = subprocess.run(command, input=stdin.read(), capture_output=True, check=False)
        if result.returncode:
            raise BackendError(result.stderr.decode())
        stdout.write(result.stdout)


@contextmanager
def served_at(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with serving(FakeHub({"models/org/name": MODEL}, token="hf_secret"), host) as fake:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "ENDPOINT", fake.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{fake.address}/{URL}")
        yield fake


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with served_at("127.0.0.1", monkeypatch, tmp_path) as fake:
        yield fake


def away(tmp_path: Path, pods: LocalPods, **options: str) -> K8sBackend:
    (tmp_path / "volume").mkdir(exist_ok=True)
    profile = {"claim_path": str(tmp_path / "volume"), "python": sys.executable, **options}
    return K8sBackend(Profile(name="team", backend="k8s", options=profile), cast("Kubernetes", pods))


def test_a_pod_fills_the_volume(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int, int]] = []
    monkeypatch.setattr(progress, "show", lambda *report: shown.append(report))
    pods = LocalPods(breaks=2)
    inputs = Inputs(away(tmp_path, pods), tmp_path / "runs")
    config, _ = inputs.pin(load_config(PretrainConfig, {"data": "/volume/data", "model": {"path": "org/name"}, "steps": 1}))
    assert isinstance(config, PretrainConfig)
    assert config.model.path == f"{tmp_path}/volume/.hub/models/org/name@{COMMIT}"
    assert not any("/resolve/" in path for path in hub.requests)
    inputs.fetch()
    assert (Path(config.model.path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert shown[-1] == (f"org/name@{COMMIT}", total := sum(map(len, MODEL.values())), total)
    assert not (tmp_path / "runs/.hub").exists(), "nothing is stored on this machine"
    assert "hf_secret" not in str(pods.commands)
    count = len(hub.requests)
    inputs.fetch()
    assert not any("/resolve/" in path for path in hub.requests[count:]), "what is on the volume is not fetched again"


def machine_of(lab: Cluster) -> str:
    """Return the address of this machine in the network of the nodes, which pods reach."""
    (node, *_) = lab.rest.items("Node", selector="!type")
    address = next(each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        return str(probe.getsockname()[0])


@pytest.mark.soak("make test runs test_a_pod_fills_the_volume")
def test_a_pod_of_a_real_cluster_fills_its_claim(
    lab: Cluster, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = K8sBackend(Profile(name="lab", backend="k8s", options={**namespace.options(), "runs": None}))
    with closing(backend.kube), served_at(machine_of(lab), monkeypatch, tmp_path) as hub:
        inputs = Inputs(backend, tmp_path / "runs")
        config, _ = inputs.pin(load_config(PretrainConfig, {"data": "/volume/data", "model": {"path": "org/name"}, "steps": 1}))
        inputs.fetch()
        assert isinstance(config, PretrainConfig)
        assert str(config.model.path).endswith(f"/.hub/models/org/name@{COMMIT}")
        (weights,) = namespace.runs.rglob("model.safetensors")
        assert weights.read_bytes() == MODEL["model.safetensors"]
        count = len(hub.requests)
        Inputs(backend, tmp_path / "runs").pin(config)
        assert len(hub.requests) == count, "the run has a path"


def test_what_the_hub_refuses_a_pod_is_told_here(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="volume runs of namespace team: hf://org/other: not here, and the hub"):
        away(tmp_path, LocalPods()).fetch([("hf://org/other", "model")], f"{tmp_path}/volume/.hub")


def test_a_volume_that_is_mounted_here_is_filled_from_here(hub: FakeHub, tmp_path: Path) -> None:
    pods = LocalPods()
    inputs = Inputs(away(tmp_path, pods, claim_path="/claim", runs=str(tmp_path / "mounted")), tmp_path / "mounted")
    config, _ = inputs.pin(load_config(PretrainConfig, {"data": "/claim/data", "model": {"path": "org/name"}, "steps": 1}))
    assert isinstance(config, PretrainConfig)
    assert config.model.path == f"/claim/.hub/models/org/name@{COMMIT}"
    assert inputs.path_here(config.model.path) is None, "it is still to be fetched"
    inputs.fetch()
    assert inputs.path_here(config.model.path) == tmp_path / f"mounted/.hub/models/org/name@{COMMIT}"
    assert (tmp_path / f"mounted/.hub/models/org/name@{COMMIT}/config.json").read_bytes() == MODEL["config.json"]
    assert not pods.commands
