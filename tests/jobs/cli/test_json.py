"""JSON of every command that reports: one option, one schema, and a client that needs nothing else."""

import json
import math
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.cli.answers.schema import ANSWERS, LINES, NO_JSON, schema_of, validate
from ropewalk.jobs.cli.main import PANELS
from tests.jobs.json_client import Client, write_files
from tests.jobs.shell import Shell, pretrain

TESTS = Path(__file__).parents[1]
NAMES = [command.__name__.rstrip("_") for panel in PANELS.values() for command in panel]


def test_every_command_that_reports_has_json_and_a_schema(shell: Shell) -> None:
    assert {*ANSWERS, *NO_JSON} == {*NAMES}
    assert not ANSWERS.keys() & NO_JSON.keys()
    for name in NAMES:
        answer = json.loads(shell("help", name, "--json"))
        assert ("--json" in [option["name"] for option in answer["options"]]) is (name in ANSWERS), name
        assert (answer["json_schema"] is not None) is (name in ANSWERS)
        assert answer["json_lines"] is (name in LINES)
        if name in ANSWERS:
            Draft202012Validator.check_schema(answer["json_schema"])


def test_the_json_of_every_command_is_checked_by_a_test() -> None:
    """`shell` validates each line that a command prints with --json, and `client` adds --json."""
    sources = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    calls = re.findall(r'(shell|client)\(\s*"(\w+)"([^\n]*)', sources)
    checked = {command for caller, command, rest in calls if caller == "client" or '"--json"' in rest}
    assert sorted(ANSWERS.keys() - checked) == []


def test_the_published_schema_says_what_is_checked(shell: Shell, running: RunDir) -> None:
    answer = json.loads(shell("why", running.id, "--json"))
    schema = Draft202012Validator(schema_of("why"))
    schema.validate(answer)
    for changes in ({"cause": None}, {"remedy": "x"}, {"more": 1}):
        assert not schema.is_valid({**answer, **changes})
        with pytest.raises(ValidationError):
            validate("why", json.dumps({**answer, **changes}))


# --- one command after the other, over a cluster that is made up


def test_json_of_submissions(shell: Shell) -> None:
    planned = json.loads(shell("run", *pretrain("--on", "good", "--dry-run", "--json")))
    assert (planned["job"], planned["runs"], planned["keys"]["steps"]) == ("pretrain", 1, "3")
    assert "processes" in [row["name"] for row in planned["plan"]]
    script = json.loads(shell("submit", *pretrain("--on", "good", "--script", "--json")))["script"]
    assert script.startswith("#!/bin/bash\n# pretrain-dry-run")
    run = json.loads(shell("run", *pretrain("--on", "bad", "--json"), expect=1))
    assert (run["state"], run["cause"]) == ("FAILED", "rank 0: ZeroDivisionError: oh")
    again = json.loads(shell("resume", run["run"], "--detach", "--json"))
    assert again == {"run": run["run"], "job": "pretrain", "directory": run["directory"]}
    shell("wait", run["run"], "--json", expect=1)


def test_json_of_receivers(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("notify.yaml").absolute()
    monkeypatch.setenv("ROPEWALK_NOTIFY", str(path))
    assert "no receivers" in json.loads(shell("notify", "test", "--json", expect=2))["error"]["message"]
    path.write_text("targets: [{name: good, command: [cat]}, {name: bad, command: ['false']}]\n")
    path.chmod(0o600)
    good, bad = json.loads(shell("notify", "test", "--json", expect=1))
    assert good == {"target": "good", "accepted": True, "error": ""}
    assert bad == {"target": "bad", "accepted": False, "error": "bad: exit code 1"}


def test_columns_of_ps(shell: Shell, running: RunDir) -> None:
    assert shell("ps", "--columns", "run, goodput").split()[:2] == ["RUN", "GOODPUT"]
    (row,) = json.loads(shell("ps", "--columns", "goodput", "--json"))
    assert row["run"] == running.id
    refused = json.loads(shell("ps", "--columns", "colour", "--json", expect=2))
    assert "columns: run, job, state" in refused["error"]["message"]
    assert json.loads(shell("show", running.id, "--json"))["goodput"]["seconds"]


def test_json_of_a_job_file(shell: Shell) -> None:
    Path("job.yaml").write_text("run: pretrain\ndata: data\nsteps: 9\n")
    checked = json.loads(shell("check", "-c", "job.yaml", "--json"))
    assert (checked["valid"], checked["mistakes"], checked["num_changed_keys"]) == (True, [], 2)
    Path("job.yaml").write_text("run: pretrain\ndata: data\nstps: 9\n")
    checked = json.loads(shell("check", "-c", "job.yaml", "--json", expect=2))
    assert not checked["valid"]
    assert any("stps" in mistake for mistake in checked["mistakes"])


def test_json_of_live_runs(shell: Shell, running: RunDir) -> None:
    assert json.loads(shell("ps", "--json"))[0]["run"] == running.id
    assert json.loads(shell("ps", "--tree", "--json"))[0]["parent"] is None
    assert json.loads(shell("show", running.id, "--json"))["attempt_list"][0]["state"] == "RUNNING"
    (page,) = map(json.loads, shell("top", "--once", "--json").splitlines())
    assert page["runs"][0]["node_samples"][0]["cpu_percent"] == 55.0
    lines = [json.loads(line) for line in shell("logs", running.id, "--json").splitlines()]
    assert lines[1] == {"attempt": 1, "source": "rank-0", "text": "hello"}
    running.describe_attempt(1, resources={"nodes": "1..4"})
    assert json.loads(shell("scale", running.id, "2", "--json")) == {"run": running.id, "nodes": 2}
    assert json.loads(shell("hold", running.id, "--json"))[0]["status"] == "held"
    assert json.loads(shell("release", running.id, "--json"))[0]["status"] == "released"
    assert json.loads(shell("priority", running.id, "5", "--json"))["lowered_by"] == 5
    (cancelled,) = json.loads(shell("cancel", running.id, "--json"))
    assert (cancelled["status"], cancelled["state"]) == ("cancelling", None)


def test_json_of_runs_that_are_over(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shell("submit", *pretrain("--on", "good")).strip()
    assert json.loads(shell("cancel", run, "--json"))[0]["status"] == "over"
    assert json.loads(shell("why", run, "--json"))["remedy"] == {"text": "", "command": None}
    monkeypatch.setattr("ropewalk.jobs.runs.mirror.server.unavailable_reason", lambda: "")
    monkeypatch.setattr("ropewalk.jobs.runs.mirror.mirror.send_rest", lambda _: 7)
    assert json.loads(shell("sync", "--json")) == {"run": run, "lines": 7}
    (removed,) = json.loads(shell("rm", run, "--json"))
    assert (removed["run"], removed["deleted"], removed["remaining"]) == (run, True, None)
    monkeypatch.setattr("ropewalk.jobs.runs.space.garbage.memory_root", lambda: shell.home / "memory")
    assert json.loads(shell("gc", "--json"))["items"] == []


def test_json_of_this_machine(shell: Shell) -> None:
    assert json.loads(shell("doctor", "--on", "bad", "--json", expect=1))["ok"] is False
    Path("empty.yaml").write_text("near: {backend: local}\n")
    assert json.loads(shell("trust", "empty.yaml", "--json")) == {"file": "empty.yaml", "trusted": False, "programs": []}
    assert "why" in [command["name"] for command in json.loads(shell("help", "--json"))["commands"]]
    assert json.loads(shell("help", "optim.lr", "--json"))["kind"] == "key"
    assert json.loads(shell("help", "pretrain", "--json"))["kind"] == "job"
    assert json.loads(shell("help", "train/loss", "--json"))["unit"] == "nats"


def test_a_failure_is_json_too(shell: Shell, running: RunDir) -> None:
    for arguments, kind in (
        (("why", "nobody"), "ConfigError"),
        (("wait",), "usage"),
        (("run", *pretrain("stps=1")), "ConfigError"),
    ):
        error = json.loads(shell(*arguments, "--json", expect=2))["error"]
        assert (error["kind"], error["exit_code"]) == (kind, 2)
        assert shell.err == f"error: {error['message']}\n"
    refused = json.loads(shell("submit", *pretrain("--on", "closed", "--json"), expect=1).splitlines()[-1])["error"]
    assert (refused["kind"], refused["exit_code"]) == ("BackendError", 1)
    assert "the queue is closed until Monday" in refused["message"]


def test_json_has_no_nan(shell: Shell, running: RunDir) -> None:
    from ropewalk.cluster.run.context import JobContext
    from ropewalk.jobs.results.metrics import MetricLog

    MetricLog(JobContext(run=running, attempt=1)).log(4, {"train/loss": math.nan})

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    assert json.loads(shell("show", running.id, "--json"), parse_constant=refuse)["run"] == running.id


# --- a client


@pytest.mark.soak("the same walk as in tests/slurm/test_json.py and tests/k8s/test_json.py")
def test_a_client_needs_only_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROPEWALK_RUNS": tmp_path / "runs", "PYTHONPATH": TESTS.parents[1], "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, str(value))
    write_files(tmp_path / "files")

    def kill(run: dict[str, Any]) -> None:
        supervisor = psutil.Process(int((read_json(Path(run["directory"]) / "supervisor.json") or {})["pid"]))
        for process in [supervisor, *supervisor.children(recursive=True)]:
            process.kill()

    Client(tmp_path).walk(str(tmp_path / "files"), "local", kill)
