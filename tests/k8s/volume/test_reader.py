"""Reading a volume that this machine does not see, where connections end before all was read; no cluster is needed."""

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import RunState
from ropewalk.k8s import backend as module
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes, NotFoundError, RefusedError
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.backend import K8sBackend
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.observe import Observation
from ropewalk.k8s.volume.reader import CHECKPOINT_BYTES, READER, Reader, render_reader
from ropewalk.k8s.volume.sync_client import RECEIVED
from ropewalk.k8s.volume.sync_server import send

READY = {"conditions": [{"type": "Ready", "status": "True"}]}


class Leaving:
    """A cluster in which the run's own pod is leaving: what is read through it ends without an error, and without an end."""

    namespace = "team"

    def __init__(self, whole: bool) -> None:
        self.whole, self.asked = whole, list[str]()

    def list(self, kind: str, labels: str, fields: str = "") -> Sequence[Object]:
        name = f"{READER}-1" if f"job-name={READER}" in labels else "run-0"
        return [{"metadata": {"name": name}, "status": READY}]

    def execute(self, pod: str, command: Sequence[str], stdin: Any, stdout: Any) -> None:
        self.asked.append(pod)
        if self.whole and pod.startswith(READER):
            stdout.write(b'{"end": true}\n')


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    result = RunDir.create("trial", {"job": "pretrain"}, tmp_path)
    result.begin_attempt(name="job-1")
    return result


def test_what_a_leaving_pod_cuts_off_is_read_through_another(run: RunDir) -> None:
    kube = Leaving(whole=True)
    Reader(cast("Kubernetes", kube), K8sProfile()).fetch(run)
    assert kube.asked == ["run-0", f"{READER}-1"]
    with pytest.raises(ApiAwayError, match="was interrupted"):
        Reader(cast("Kubernetes", Leaving(whole=False)), K8sProfile()).fetch(run)


@pytest.mark.parametrize("error", [NotFoundError, RefusedError, ApiAwayError])
def test_a_readers_pod_that_is_gone_is_replaced(run: RunDir, error: type[Exception]) -> None:
    """A reader's pod ends by itself after a while, at times during a read."""

    class Ending(Leaving):
        def execute(self, pod: str, command: Sequence[str], stdin: Any, stdout: Any) -> None:
            super().execute(pod, command, stdin, stdout)
            if len(self.asked) < 3:
                raise error("pods are gone")

    kube = Ending(whole=True)
    Reader(cast("Kubernetes", kube), K8sProfile()).fetch(run)
    assert kube.asked == ["run-0", f"{READER}-1", f"{READER}-1"]


class Shared:
    """A namespace in which others read volumes too; it starts what it is told to, and answers as it is told."""

    namespace = "team"

    def __init__(self, *others: Object, answers: Sequence[bytes] = (b'{"end": true}\n',), lasts_seconds: float = 0.0) -> None:
        self.pods, self.jobs, self.deleted = [*others], dict[str, Object](), list[str]()
        self.answers, self.lasts_seconds = list(answers), lasts_seconds
        self.asked: list[tuple[str, list[str]]] = []

    def list(self, kind: str, labels: str, fields: str = "") -> Sequence[Object]:
        wanted = dict(pair.split("=") for pair in labels.split(","))
        return [pod for pod in self.pods if wanted.items() <= pod["metadata"]["labels"].items()]

    def create(self, each: Object) -> Object:
        name = each["metadata"]["name"]
        self.jobs[name] = each
        labels = {**each["spec"]["template"]["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
        self.pods.append({"metadata": {"name": f"{name}-x", "labels": labels}, "status": READY})
        return each

    def get(self, kind: str, name: str) -> Object:
        return self.jobs[name]

    def patch(self, kind: str, name: str, patch: Object) -> Object:
        self.jobs[name]["spec"] |= patch["spec"]
        return self.jobs[name]

    def delete(self, kind: str, name: str) -> None:
        self.deleted.append(name)

    def execute(self, pod: str, command: Sequence[str], stdin: Any, stdout: Any) -> None:
        self.asked.append((pod, list(command)))
        time.sleep(self.lasts_seconds)
        if stdout is not None:
            stdout.write(self.answers.pop(0))


def test_the_pod_that_reads_is_that_of_this_users_job_for_this_profile(run: RunDir) -> None:
    other = render_reader(K8sProfile(claim="another"))
    kube = Shared()
    kube.create(other)
    stranger = kube.pods[0]["metadata"]["name"]
    Reader(cast("Kubernetes", kube), K8sProfile()).fetch(run)
    ((pod, _),) = kube.asked
    assert pod != stranger
    kube.answers.append(b'{"end": true}\n')
    Reader(cast("Kubernetes", kube), K8sProfile(claim="another")).fetch(run)
    assert kube.asked[1][0] == stranger


def test_a_pod_that_ends_as_it_starts_is_an_error(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Job of a failed pod is deleted after a few seconds."""
    monkeypatch.setattr("ropewalk.k8s.volume.reader.READY_SECONDS", 0.2)
    monkeypatch.setattr("ropewalk.k8s.volume.reader.POLL_SECONDS", 0.02)

    class Failing(Shared):
        def create(self, each: Object) -> Object:
            created = super().create(each)
            state = {"terminated": {"reason": "StartError", "exitCode": 128, "message": "no such file: python"}}
            self.pods = [{**self.pods[-1], "status": {"phase": "Failed", "containerStatuses": [{"name": "x", "state": state}]}}]
            return created

        def get(self, kind: str, name: str) -> Object:
            raise NotFoundError(name)

    with pytest.raises(BackendError, match=r"the pod that reads the volume did not start within 0 s: "):
        Reader(cast("Kubernetes", Failing()), K8sProfile()).fetch(run)


def test_a_directory_that_is_not_there_any_more_is_no_copy_that_is_up_to_date(run: RunDir, tmp_path: Path) -> None:
    sent = io.BytesIO()
    send(tmp_path / "nowhere", {}, sent)
    absent = sent.getvalue()
    assert json.loads(absent) == {"end": True, "absent": True}

    def reader() -> Reader:
        return Reader(cast("Kubernetes", Shared(answers=[absent])), K8sProfile())

    reader().fetch(run)  # nothing of it has ever come: no pod has put it there yet
    with pytest.raises(BackendError, match="volume runs of namespace team: no such directory"):
        reader().fetch(run, write={"scale.json": "{}"})
    (run.path / "metrics.jsonl").write_text("{}\n")
    status = (run.path / "metrics.jsonl").stat()
    write_json(run.path / RECEIVED, {"metrics.jsonl": [status.st_size, status.st_mtime_ns]})
    with pytest.raises(BackendError, match="was it deleted, or does the profile name another volume"):
        reader().fetch(run)


def test_an_export_has_memory_for_its_model_and_time_for_a_slow_line(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ropewalk.k8s.volume.reader.LEASE_SECONDS", 0.02)
    model = b"weights"
    header = json.dumps({"path": "model.safetensors", "offset": 0, "size": len(model), "mtime_ns": 1}).encode() + b"\n"
    kube = Shared(answers=[str(9 * 2**30).encode(), header + model + b'{"end": true}\n'], lasts_seconds=0.2)
    Reader(cast("Kubernetes", kube), K8sProfile()).export(run, tmp_path / "model", None)
    assert (tmp_path / "model/model.safetensors").read_bytes() == model
    (plain, _), (pod, _), (again, _) = kube.asked
    assert plain != pod == again
    job = kube.jobs[pod.removesuffix("-x")]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["memory"] == f"{9 * 1024 + 768}Mi"
    assert container["resources"]["limits"]["memory"] == "13Gi"
    assert job["spec"]["activeDeadlineSeconds"] >= 600 + 3 * 0.02
    assert kube.deleted == [job["metadata"]["name"]], "its memory is for others"


def test_an_export_whose_pod_was_replaced_is_no_empty_model(run: RunDir, tmp_path: Path) -> None:
    kube = Shared(answers=[b"5", b'{"end": true, "absent": true}\n'])
    with pytest.raises(BackendError, match="was replaced before the download was complete; export again"):
        Reader(cast("Kubernetes", kube), K8sProfile()).export(run, tmp_path / "model", None)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("step", "size"), [(None, 30), (1, 10), (7, 0)])
def test_how_much_memory_an_export_needs_is_read_from_the_checkpoint(tmp_path: Path, step: int | None, size: int) -> None:
    for number in (1, 2):
        folder = tmp_path / f"checkpoints/step-{number:08d}"
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {"files": [{"size": 5 * number}, {"size": 5 * number + 10 * (number - 1)}]})
    (tmp_path / "checkpoints/step-00000009").mkdir()  # cut short
    command = [sys.executable, "-c", CHECKPOINT_BYTES, str(tmp_path), str(step or "")]
    assert int(subprocess.run(command, capture_output=True, check=True).stdout) == size


def test_an_end_that_cannot_be_read_is_not_guessed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = K8sBackend(Profile(name="far", backend="k8s", options={}), cast("Kubernetes", Leaving(whole=False)))
    monkeypatch.setattr(module, "observe", lambda kube, runs: {each.id: Observation(details={"name": "job-1"}) for each in runs})
    run.request_cancel()  # and its Job is gone
    for ask, item in ((backend.states, f"`ropewalk show {run.id}` reads its outcome"), (backend.settle, "was interrupted")):
        state = ask([run])[run.id]
        assert (state.state, state.word) == (RunState.PENDING, "no answer")
        assert item in state.reason
        assert run.last_outcome() is None


@pytest.mark.parametrize("resumed_elsewhere", [False, True])
def test_a_request_to_cancel_that_no_pod_saw_is_kept(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed_elsewhere: bool
) -> None:
    """The pod was deleted before it wrote anything, so nothing on the volume says that the run was cancelled."""
    original = RunDir(tmp_path / "volume" / run.id)
    shutil.copytree(run.path, original.path)
    original.requests.put("nodes", 2)
    if resumed_elsewhere:
        original.begin_attempt(name="job-2")

    class Volume(Leaving):
        def execute(self, pod: str, command: Sequence[str], stdin: Any, stdout: Any) -> None:
            sent = io.BytesIO()
            send(original.path, json.load(stdin), sent)
            stdout.write(sent.getvalue())

    backend = K8sBackend(Profile(name="far", backend="k8s", options={}), cast("Kubernetes", Volume(whole=True)))
    monkeypatch.setattr(module, "observe", lambda kube, runs: {each.id: Observation(details={"name": "job-1"}) for each in runs})
    run.request_cancel()
    backend.sync(run)
    assert run.cancel_requested is not resumed_elsewhere
    assert run.wanted_nodes == 2
    if not resumed_elsewhere:
        assert backend.settle([run])[run.id].state is RunState.CANCELLED
