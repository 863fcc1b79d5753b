"""The controller under clocks that jump, full disks and successors: what serves stays, and the registry is not moved back."""

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.runs.models.model_versions import RegisteredModel
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller import controller as controller_module
from ropewalk.jobs.serving.serve.controller.applications import Applications, ApplicationStatus
from ropewalk.jobs.serving.serve.controller.controller import Controller
from ropewalk.jobs.serving.serve.controller.state import Phase
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles
from ropewalk.jobs.serving.serve.models import WatchedAlias
from ropewalk.jobs.serving.serve.replica import ReplicaSpec
from tests.fakes.full_disk import full_disk
from tests.jobs.models.registry.registered import directory
from tests.patience import until

CLOCK = time.time


class FakeApplications(Applications):
    """Applications without Ray: those of `loaded` versions have a replica."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ServeConfig(model="m"), folder, folder)
        self.deployed: dict[str, str] = {}  # version by application
        self.loaded: set[str] = set()
        self.errors: list[OSError] = []  # raised by the next deployments
        self.given_up: set[str] = set()
        self.unnoticed = 0  # dead replicas that Ray Serve takes for running
        self.serve_restarts = 0

    def restart_serve(self) -> None:
        self.serve_restarts += 1

    def running(self) -> dict[str, Any]:
        return dict(self.deployed)

    def deploy(self, spec: ReplicaSpec) -> None:
        if self.errors:
            raise self.errors.pop()
        self.deployed[spec.app] = spec.version

    def delete(self, app: str) -> None:
        self.deployed.pop(app)
        self.given_up.discard(app)

    def observe(self, apps: Collection[str], running: Mapping[str, Any]) -> dict[str, ApplicationStatus]:
        record = {"url": "http://127.0.0.1:1", "engine": "command", "slots": 1}
        loaded = {app for app, version in self.deployed.items() if version in self.loaded}
        return {
            app: ApplicationStatus(
                replicas=({**record, "id": app},) if app in loaded else (),
                given_up=app in self.given_up,
                unnoticed=self.unnoticed,
            )
            for app in apps
        }


class Attempt:
    """A controller that serves version 1 of the registry, with a hand-turned wall clock."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = home / "runs"
        monkeypatch.setattr(controller_module, "WANTED_SECONDS", 0.0)
        promote(str(directory(home / "one", b"1")), name="m", root=root, force="a test")
        self.model = RegisteredModel(root, "m")
        self.run = RunDir.create("serve", {"job": "serve", "config": {"model": "m@production"}, "resources": {}}, root)
        ServingFiles(self.run).make()
        self.local = LocalFiles(home / "local")
        self.local.make()
        self.applications = FakeApplications(home)
        context = JobContext(run=self.run, attempt=self.run.begin_attempt())
        self.controller = Controller(context, self.applications, WatchedAlias(self.model, "production"), self.local)
        monkeypatch.setattr(self.controller.probes, "result", lambda app: "")
        self.applications.loaded = {"m@1"}
        self.until(lambda: self.controller.state.stable == "m@1")

    def until(self, condition: Any) -> None:
        until(lambda: self.controller.tick() or condition())

    def phase(self, version: str) -> Phase:
        return self.controller.state.versions[version].phase


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    return Attempt(tmp_path, monkeypatch)


def test_ray_serve_is_restarted_if_it_does_not_notice_a_dead_replica(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "UNNOTICED_SECONDS", 0.2)
    attempt.applications.unnoticed = 1
    attempt.controller.tick()
    assert attempt.applications.serve_restarts == 0, "one round's difference is no evidence"
    attempt.until(lambda: attempt.applications.serve_restarts == 1)
    attempt.applications.unnoticed = 0
    for _ in range(10):
        attempt.controller.tick()
        time.sleep(0.05)
    assert attempt.applications.serve_restarts == 1


HANGING = """
import time
from ropewalk.jobs.serving.serve.controller import controller
controller.TICK_SECONDS = 0.5
hanging = controller.Controller.__new__(controller.Controller)
hanging.tick = lambda: time.sleep(600)
hanging.run()
"""


def test_a_round_that_hangs_ends_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "controller.py" in ended.stderr, "the stack is in the log"


def test_dead_replicas_that_ray_serve_takes_for_running_are_counted(tmp_path: Path) -> None:
    actors = ["SERVE_REPLICA::m-1.1#replica#a", "SERVE_REPLICA::m-1.10#replica#b", "SERVE_CONTROLLER_ACTOR"]
    deployment = SimpleNamespace(replica_states={"RUNNING": 3, "STARTING": 2}, message="")
    status = SimpleNamespace(status="RUNNING", deployments={"replica": deployment})
    applications = Applications(ServeConfig(model="m"), tmp_path, tmp_path)
    assert applications._status("m-1.1", [], status, actors).unnoticed == 2
    assert applications._status("m-1.1", [], None, actors).unnoticed == 0


def test_a_serving_version_starts_again_once_its_damaged_entry_is_restored(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "RETRY_SECONDS", 0.05)
    entry = attempt.model.folder / "versions" / "000001.json"
    intact = entry.read_bytes()
    entry.write_bytes(intact[: len(intact) // 2])
    attempt.applications.deployed.clear()  # Ray was started again
    attempt.controller._preparing.clear()
    for _ in range(20):
        attempt.controller.tick()
        time.sleep(0.02)
    assert (attempt.phase("m@1"), attempt.applications.deployed) == (Phase.READY, {})
    entry.write_bytes(intact)
    attempt.until(lambda: list(attempt.applications.deployed.values()) == ["m@1"])


def test_a_serving_version_that_ray_serve_has_given_up_is_started_again(attempt: Attempt) -> None:
    """Ray was started again while a disk was full, and no replica could start."""
    (app,) = attempt.applications.deployed
    attempt.applications.given_up = {app}
    attempt.controller.tick()
    assert not attempt.applications.deployed
    attempt.until(lambda: app in attempt.applications.deployed)
    assert attempt.phase("m@1") is Phase.READY


@pytest.mark.parametrize("minutes", [20, -20])
def test_a_clock_that_jumps_neither_refuses_a_version_nor_moves_the_registry(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    promote(str(directory(tmp_path / "two", b"2")), root=attempt.model.root, force="a test")
    attempt.until(lambda: "m@2" in attempt.controller.state.versions)
    monkeypatch.setattr("time.time", lambda: CLOCK() + 60 * minutes)
    for _ in range(3):
        attempt.controller.tick()
    assert attempt.phase("m@2") is Phase.LOADING
    current = attempt.model.current("production")
    assert current is not None
    assert current.id == "m@2"
    attempt.applications.loaded.add("m@2")
    attempt.until(lambda: attempt.controller.state.stable == "m@2")
    assert attempt.phase("m@1") is Phase.READY, "the previous version stays loaded for its ten minutes"


def test_on_a_full_disk_versions_switch_and_files_follow_later(
    attempt: Attempt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    promote(str(directory(tmp_path / "two", b"2")), root=attempt.model.root, force="a test")
    attempt.applications.loaded.add("m@2")
    with full_disk():
        attempt.until(lambda: attempt.controller.state.stable == "m@2")
        for _ in range(3):
            attempt.controller.tick()
        files = (attempt.controller.files.state, attempt.local.routes, attempt.controller.files.routes)
        for file in files:
            assert sum(record.message.startswith(f"{file}: not written") for record in caplog.records) == 1
        assert (read_json(files[0]) or {})["stable"] == "m@1"
    attempt.controller.tick()
    assert (read_json(files[0]) or {})["stable"] == "m@2"
    assert "m@2" in (read_json(attempt.local.routes) or {})["versions"]
    assert caplog.text.count("written again after") == 3


def test_a_version_that_finds_no_room_to_start_is_tried_again(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "RETRY_SECONDS", 0.0)
    attempt.applications.errors = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "f") for _ in range(3)]
    promote(str(directory(tmp_path / "two", b"2")), root=attempt.model.root, force="a test")
    attempt.applications.loaded.add("m@2")
    attempt.until(lambda: attempt.controller.state.stable == "m@2")


def test_a_full_registry_is_moved_back_once_there_is_room(attempt: Attempt, tmp_path: Path) -> None:
    promote(str(directory(tmp_path / "two", b"2")), root=attempt.model.root, force="a test")
    (tmp_path / "two/config.json").unlink()  # it cannot be loaded
    with full_disk():
        attempt.until(lambda: attempt.phase("m@2") is Phase.REFUSED)
        attempt.controller.tick()
        assert attempt.model.current("production").id == "m@2"  # type: ignore[union-attr]
    attempt.until(lambda: attempt.model.current("production").id == "m@1")  # type: ignore[union-attr]


def test_the_controller_of_a_succeeded_attempt_writes_and_moves_nothing(attempt: Attempt, tmp_path: Path) -> None:
    promote(str(directory(tmp_path / "two", b"2")), root=attempt.model.root, force="a test")
    (tmp_path / "two/config.json").unlink()
    attempt.until(lambda: "m@2" in attempt.controller.state.versions)
    attempt.run.begin_attempt()
    before = {file: file.read_bytes() for file in (attempt.controller.files.state, attempt.controller.files.routes)}
    attempt.controller.state.versions["m@2"].phase = Phase.REFUSED
    attempt.local.closing.touch()  # changes the routes
    for _ in range(3):
        attempt.controller.tick()
    assert {file: file.read_bytes() for file in before} == before
    assert attempt.model.current("production").id == "m@2"  # type: ignore[union-attr]
