"""A client on a real Kubernetes cluster that knows `ropewalk` by its JSON alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.jobs.assistant import set_up
from tests.jobs.json_client import Client, write_files
from tests.k8s.cluster import Namespace


@pytest.mark.soak("a minute, three runs; make test has the same client on this machine")
@pytest.mark.timeout(900)
def test_a_client_needs_only_json(namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = {"backend": "k8s", **namespace.options()}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    set_up(tmp_path, {"pods": profile}, monkeypatch)
    write_files(namespace.runs / "files")

    def kill(run: dict[str, Any]) -> None:
        namespace.kubectl("delete", "job", "--wait=false", run["handle"].rpartition("/")[2])

    Client(tmp_path).walk("/runs/files", "pods", kill, ["resources.cpus=1", "resources.grace_seconds=10"])
