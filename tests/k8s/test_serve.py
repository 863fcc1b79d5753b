"""A run that serves from a pod: the Service in front of it, the way to it from a laptop, and a pod that is evicted."""

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.process.ports import free_port
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.inference.scoring.endpoint_chat import EndpointChat, find_endpoint
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.submit.submit import configure, submit
from tests.fakes.engine import fake_model
from tests.jobs.serving.serve.serving import Load, Serving, ask
from tests.jobs.shell import Shell
from tests.k8s.cluster import ROOT, Namespace
from tests.patience import Patience, until

pytestmark = [
    pytest.mark.soak("two Rays one after the other; test_manifest.py has the Service"),
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("alone_with_ray"),
]

WORDS = 10


@contextmanager
def tunnel(command: str) -> Iterator[None]:
    """The command that a person is told to type, while the block runs."""
    with subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as way:
        assert way.stdout is not None
        assert "Forwarding" in way.stdout.readline(), command
        try:
            yield
        finally:
            way.send_signal(signal.SIGTERM)


def submitted(namespace: Namespace, folder: Path, port: int) -> RunDir:
    program = shutil.copy(ROOT / "tests/fakes/engine.py", namespace.runs)  # pods may not see this checkout
    engine = [namespace.cluster.python, str(program), "{model}", "--host", "{host}", "--port", "{port}"]
    settings = {
        "model": str(folder),
        "engine_command": engine,
        "host": "0.0.0.0",
        "auth": "none",
        "port": port,
        "replicas": 2,
        "cpus": 0.5,
    }
    settings |= {"resources.cpus": 1, "resources.grace_seconds": 30}
    return submit("serve", configure("serve", None, [f"{key}={json.dumps(value)}" for key, value in settings.items()]), "pods")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that end with a process
def test_a_pod_serves_behind_a_service_and_a_laptop_finds_the_way(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{namespace.cluster.path}:{os.environ['PATH']}")
    monkeypatch.setenv(RUNS_VARIABLE, str(namespace.runs))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    # pods see the volume under the path that this machine sees it under
    profile = {"backend": "k8s", **namespace.options(claim_path=str(namespace.runs))}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"pods": profile}))
    folder, port = fake_model(namespace.runs / "one", says="one", words=WORDS, pause=0.02), free_port("127.0.0.1")
    run = submitted(namespace, folder, port)
    try:
        serving = Serving(run, tmp_path)
        serving.until(lambda: serving.state.get("stable") and len(serving.replicas("one")) == 2, Patience.CLUSTER)
        (service,) = namespace.items("Service", "ropewalk/role=service")
        kubectl = f"kubectl --kubeconfig {namespace.cluster.kubeconfig} -n {namespace.name}"
        way = f"{kubectl} port-forward service/{service['metadata']['name']} {port}:{port}"
        assert way in " ".join(Shell(capsys, monkeypatch, tmp_path)("show", run.id).split())
        endpoint = find_endpoint(run.id)
        assert endpoint is not None
        with closing(EndpointChat(endpoint, Sampling(max_new_tokens=4, temperature=0.0, top_p=1.0))) as chat:
            assert chat.answer("hello").split()[0] == "one0", "through a tunnel of its own"
        with tunnel(endpoint.tunnel_command):
            assert ask(f"http://127.0.0.1:{port}")[0] == 200
            with Load(f"http://127.0.0.1:{port}", WORDS, clients=2, pause=0.1) as load:
                until(lambda: load.count > 8, Patience.STEP)
            assert load.failures == []

        attempt = run.attempts()[-1]
        namespace.kubectl("delete", "pod", namespace.pod(0)["metadata"]["name"], "--wait=false")
        serving.until(lambda: (read_json(serving.files.address) or {}).get("attempt", 0) > attempt, Patience.CLUSTER)
        serving.until(lambda: len(serving.replicas("one")) == 2, Patience.CLUSTER)
        with tunnel(endpoint.tunnel_command):
            until(lambda: ask(f"http://127.0.0.1:{port}")[0] == 200, Patience.STEP)
        assert serving.events("serving_stopped"), "the pod that left ended what was open"
    finally:
        list(cancel_runs([run.id]))
        until(lambda: (outcome := run.last_outcome()) is not None and outcome.state.final, Patience.RUN)
