"""Reading a volume that this machine does not see, where connections end before all was read; no cluster is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.backend import Profile
from cluster.run_dir import RunDir
from cluster.spec import RunState
from k8s import backend as module
from k8s.backend import K8sBackend
from k8s.client import ApiAwayError, Kubernetes, NotFoundError, Object, RefusedError
from k8s.profile import K8sProfile
from k8s.reader import READER, Reader
from k8s.states import Seen

READY = {"conditions": [{"type": "Ready", "status": "True"}]}


class Leaving:
    """A cluster in which the run's own pod is leaving: what is read through it ends without an error, and without an end."""

    namespace = "team"

    def __init__(self, whole: bool) -> None:
        self.whole, self.asked = whole, list[str]()

    def list(self, kind: str, labels: str, fields: str = "") -> Sequence[Object]:
        name = f"{READER}-1" if "role=reader" in labels else "run-0"
        return [{"metadata": {"name": name}, "status": READY}]

    def execute(self, pod: str, words: Sequence[str], stdin: Any, stdout: Any) -> None:
        self.asked.append(pod)
        if self.whole and pod.startswith(READER):
            stdout.write(b'{"end": true}\n')


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir.create("trial", {"job": "pretrain"}, tmp_path)
    found.begin_attempt(name="job-1")
    return found


def test_what_a_leaving_pod_cuts_off_is_read_through_another(run: RunDir) -> None:
    kube = Leaving(whole=True)
    Reader(cast("Kubernetes", kube), K8sProfile()).fetch(run)
    assert kube.asked == ["run-0", f"{READER}-1"]
    with pytest.raises(ApiAwayError, match="ended half-way"):
        Reader(cast("Kubernetes", Leaving(whole=False)), K8sProfile()).fetch(run)


@pytest.mark.parametrize("error", [NotFoundError, RefusedError, ApiAwayError])
def test_a_readers_pod_that_is_gone_is_replaced(run: RunDir, error: type[Exception]) -> None:
    """It ends by itself after a while, at times just now."""

    class Ending(Leaving):
        def execute(self, pod: str, words: Sequence[str], stdin: Any, stdout: Any) -> None:
            super().execute(pod, words, stdin, stdout)
            if len(self.asked) < 3:
                raise error("pods are gone")

    kube = Ending(whole=True)
    Reader(cast("Kubernetes", kube), K8sProfile()).fetch(run)
    assert kube.asked == ["run-0", f"{READER}-1", f"{READER}-1"]


def test_an_end_that_cannot_be_read_is_not_guessed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = K8sBackend(Profile(name="far", backend="k8s", options={}), cast("Kubernetes", Leaving(whole=False)))
    monkeypatch.setattr(module, "look", lambda kube, runs: {each.id: Seen(details={"name": "job-1"}) for each in runs})
    run.request_cancel()  # and its Job is gone
    state = backend.states([run])[run.id]
    assert (state.state, state.word) == (RunState.PENDING, "no answer")
    assert "ended half-way" in state.reason
    assert run.last_outcome() is None
