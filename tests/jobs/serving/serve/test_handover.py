"""A successor that fails is no successor: the run serves on, and its next attempt submits another one."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.controller.applications import Applications, ApplicationStatus
from ropewalk.jobs.serving.serve.controller.controller import Controller
from ropewalk.jobs.serving.serve.files import LocalFiles, ServingFiles
from ropewalk.jobs.serving.serve.handover import Handover
from ropewalk.jobs.serving.serve.models import FixedModel
from ropewalk.jobs.serving.serve.replica import ReplicaSpec
from tests.fakes.engine import fake_model
from tests.jobs.shell import Shell

KEYS = {"model": "anything", "handover": True, "handover_minutes": 60, "resources": {"time_limit_minutes": 5}}


def serving(root: Path, cluster: str) -> tuple[RunDir, ServeConfig]:
    config = load_config(ServeConfig, KEYS)
    about = {"job": "serve", "entry": "ropewalk.jobs.serving.serve.job:main", "engine": "ray", "cluster": cluster, "sidecars": []}
    record = {**about, "config": config.model_dump(mode="json"), "resources": config.resources.model_dump(mode="json")}
    run = RunDir.create("serve", record, root)
    ServingFiles(run).make()
    return run, config


def attempt(run: RunDir, config: ServeConfig) -> Handover:
    return Handover(JobContext(run=run, attempt=run.begin_attempt()), config)


def asked_at(run: RunDir) -> str:
    endpoint = view_of(run).endpoint()
    assert endpoint is not None
    return endpoint.address


def test_a_successor_that_fails_is_left_and_the_next_attempt_submits_another(shell: Shell) -> None:
    run, config = serving(shell.home / "runs", "bad")
    first = attempt(run, config)
    assert first.due()
    failed = first.start()
    assert failed is not None
    assert failed.record["continues"] == run.id
    assert not first.is_serving(failed)
    assert first.failed
    assert not first.due()
    assert first.start() is None
    assert [event["error"].partition(":")[0] for event in run.read_events() if event["event"] == "handover_failed"] == [failed.id]
    second = attempt(run, config).start()
    assert second is not None
    assert second.id != failed.id


def test_one_that_answers_is_handed_over_to_by_whichever_attempt(shell: Shell) -> None:
    run, config = serving(shell.home / "runs", "slow")
    first = attempt(run, config)
    successor = first.start()
    assert successor is not None
    assert not first.is_serving(successor)
    assert not first.failed
    write_json(ServingFiles(run).address, {"address": "http://127.0.0.1:2", "port": 2, "node": "a", "attempt": 1})
    files = ServingFiles(successor)
    files.make()
    write_json(files.address, {"address": "http://127.0.0.1:1", "port": 1, "node": "b", "attempt": 1})
    assert asked_at(run) == "http://127.0.0.1:2", "the successor listens, and loads still"
    write_json(files.state, {"stable": "anything@1"})
    assert asked_at(run) == "http://127.0.0.1:1"
    again = attempt(run, config)
    result = again.start()
    assert result is not None
    assert result.id == successor.id
    assert again.is_serving(successor)
    assert read_json(ServingFiles(run).successor) is not None


def test_a_submission_that_is_refused_changes_nothing(shell: Shell) -> None:
    run, config = serving(shell.home / "runs", "closed")
    first = attempt(run, config)
    assert first.start() is None
    assert first.failed
    assert not first.due()


class NoApplications(Applications):
    """Ray Serve runs nothing."""

    def running(self) -> dict[str, Any]:
        return {}

    def deploy(self, spec: ReplicaSpec) -> None:
        pass

    def observe(self, apps: Collection[str], running: Mapping[str, Any]) -> dict[str, ApplicationStatus]:
        return {app: ApplicationStatus() for app in apps}


def test_a_run_refuses_new_requests_once_its_successor_answers(shell: Shell) -> None:
    """The run hands over because its time limit is near."""
    run, config = serving(shell.home / "runs", "slow")
    local = LocalFiles(shell.home / "local")
    local.make()
    source = FixedModel(str(fake_model(shell.home / "one")))
    context = JobContext(run=run, attempt=run.begin_attempt())
    controller = Controller(context, NoApplications(config, local.folder, local.load), source, local)
    controller.tick()
    assert (read_json(local.routes) or {})["accepting"]
    local.closing.touch()
    controller.tick()
    assert not (read_json(local.routes) or {})["accepting"]


def test_killed_between_submission_and_record_the_next_attempt_adopts_the_successor(shell: Shell) -> None:
    run, config = serving(shell.home / "runs", "slow")
    first = attempt(run, config).start()
    assert first is not None
    ServingFiles(run).successor.unlink()  # as if the attempt had been killed before it wrote this file
    again = attempt(run, config).start()
    assert again is not None
    assert again.id == first.id
    assert (read_json(ServingFiles(run).successor) or {})["run"] == first.id
    assert [each.id for each in RunDir.all(shell.home / "runs") if each.record.get("continues") == run.id] == [first.id]


def test_killed_before_the_submission_the_next_attempt_starts_the_successor(shell: Shell) -> None:
    run, config = serving(shell.home / "runs", "slow")
    created = attempt(run, config)._create()
    successor = attempt(run, config).start()
    assert successor is not None
    assert successor.id == created.id
    assert successor.attempts()
