"""Files that root hands over to the pods' user at submission: those it wrote, and no targets of links."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.backend import K8sBackend

POD_USER = 1000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


class Refusing:
    """A cluster that takes nothing."""

    namespace = "ns"

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: object, **__: object) -> Any:
            raise BackendError("not today")

        return refuse


def submitted(run: RunDir, root: Path) -> None:
    """A submission of the run's next attempt, by root, that the cluster refuses once all is written."""
    options = {"claim": "runs", "claim_path": str(root), "image": "x:1", "runs": str(root), "user": POD_USER}
    backend = K8sBackend(Profile(name="k", backend="k8s", options=options), cast(Kubernetes, Refusing()))
    with pytest.raises(BackendError, match="not today"):
        backend.submit_many([run], Resources())


def owner(path: Path) -> int:
    return path.lstat().st_uid


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    root = tmp_path / "runs"
    record = {
        "config": {},
        "engine": "process",
        "entry": "tests.fakes.toy:tick",
        "resources": Resources().model_dump(mode="json"),
    }
    run = RunDir.create("toy", record, root)
    submitted(run, root)
    return run


def test_a_new_run_is_the_pods(run: RunDir) -> None:
    paths = [run.path, *run.path.rglob("*")]
    assert run.attempt_dir(1) / "manifest.yaml" in paths
    assert [path for path in paths if owner(path) != POD_USER] == []


def test_links_that_pods_have_put_there_lead_nowhere(run: RunDir, tmp_path: Path) -> None:
    precious, folder = tmp_path / "shadow", tmp_path / "etc"
    precious.write_text("root:x")
    folder.mkdir()
    (folder / "passwd").touch()
    (run.path / "checkpoints").symlink_to(precious)
    (run.path / "wandb").symlink_to(folder)
    (run.path / "attempts/logs").symlink_to(precious)
    (run.events.folder / "other.jsonl").symlink_to(precious)
    os.link(precious, run.path / "metrics.jsonl")
    (run.path.parent / CODE_FOLDER).symlink_to(folder)
    submitted(run, run.path.parent)
    assert owner(run.attempt_dir(2) / "attempt.json") == POD_USER
    assert [owner(path) for path in (precious, folder, folder / "passwd")] == [0, 0, 0]


def test_a_run_that_pods_make_look_new_is_none(run: RunDir, tmp_path: Path) -> None:
    precious = tmp_path / "shadow"
    precious.write_text("root:x")
    shutil.rmtree(run.path / "attempts")
    (run.path / "link").symlink_to(precious)
    os.link(precious, run.path / "metrics.jsonl")
    submitted(run, run.path.parent)
    assert run.attempts() == [1]
    assert owner(run.attempt_dir(1) / "attempt.json") == POD_USER
    assert owner(precious) == 0


@pytest.mark.parametrize("attempts", [1, 2])
def test_who_submits_may_write_the_first_event_behind_the_submission(run: RunDir, attempts: int) -> None:
    if attempts == 2:  # the first one never ran
        run.events.folder.rmdir()
        submitted(run, run.path.parent)
    run.event("resumed_by_user")
    assert owner(run.events.folder) == POD_USER, "else no pod could write its own"


def test_events_that_root_began_can_be_gone_on_with(run: RunDir) -> None:
    run.event("submit_failed")
    (file,) = run.events.files()
    assert owner(file) == 0
    submitted(run, run.path.parent)
    assert owner(file) == POD_USER


def test_a_folder_of_events_that_leads_elsewhere_is_left_alone(run: RunDir, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "a.jsonl").touch()
    run.events.folder.rmdir()
    run.events.folder.symlink_to(precious)
    submitted(run, run.path.parent)
    assert owner(precious / "a.jsonl") == 0
