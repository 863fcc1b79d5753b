"""Resumes with other keys and with the current code: run.yaml stays, and everything reads the merged record."""

import json
from pathlib import Path

import pytest

from ropewalk.cluster.engines.entry import run_entry
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from tests.jobs.shell import Shell, pretrain
from tests.patience import Patience, until

FAILED = Outcome(state=RunState.FAILED, exit_code=1, cause="a bug", started=1.0, ended=2.0)


def submitted(shell: Shell, cluster: str, *more: str) -> RunDir:
    """A run that has failed."""
    run = RunDir(shell.home / "runs" / shell("submit", *pretrain("--on", cluster, *more)).strip())
    run.write_outcome(1, FAILED)
    return run


def test_other_keys_hold_from_the_new_attempt_on(shell: Shell) -> None:
    run = submitted(shell, "slow")
    before = (run.path / "run.yaml").read_bytes()
    shell("resume", run.id, "optim.lr=0.5", "steps=7", "resources.nodes=2", "--detach")
    assert (run.path / "run.yaml").read_bytes() == before
    again = RunDir(run.path)
    assert (again.record["config"]["optim"]["lr"], again.record["config"]["steps"]) == (0.5, 7)
    assert again.record["config"]["seq_len"] == 16
    assert again.resources().nodes.most == 2
    assert [(change["attempt"], sorted(change["config"])) for change in again.changes] == [(2, ["optim", "steps"])]
    event = next(event for event in again.read_events() if event["event"] == "changed_by_user")
    assert (event["attempt"], set(event["changed"].split(", "))) == (2, {"optim", "steps"})
    again.write_outcome(2, FAILED)
    shell("resume", run.id, "steps=9", "--detach")
    third = RunDir(run.path).record
    assert (third["config"]["steps"], third["config"]["optim"]["lr"]) == (9, 0.5)
    assert "attempt" not in third
    shown = json.loads(shell("show", run.id, "--json"))
    assert shown["config"]["steps"] == 9


def test_the_environment_follows_the_keys(shell: Shell) -> None:
    run = submitted(shell, "slow")
    assert "required_environment" not in run.record
    shell("resume", run.id, "precision.deterministic=true", "--detach")
    assert RunDir(run.path).record["required_environment"] == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NCCL_ALGO": "Ring",
        "TORCHINDUCTOR_DETERMINISTIC": "1",
    }
    run.write_outcome(2, FAILED)
    shell("resume", run.id, "precision.deterministic=false", "--detach")
    assert RunDir(run.path).record["required_environment"] == {}


@pytest.mark.parametrize("override", ["data=elsewhere", "model.preset=tiny", "seed=5", "seed=5 steps=7"])
def test_what_the_checkpoints_depend_on_cannot_change(shell: Shell, override: str) -> None:
    run = submitted(shell, "slow")
    key = override.partition("=")[0].partition(".")[0]
    message = shell.mistake("resume", run.id, *override.split())
    assert f"the {key} of a run cannot change" in message
    assert "submit a new run: ropewalk submit pretrain ... " in message
    assert (run.changes, run.attempts()) == ([], [1])


def test_a_resume_that_fails_changes_nothing(shell: Shell) -> None:
    run = submitted(shell, "slow")
    assert "stps" in shell.mistake("resume", run.id, "stps=7")
    (shell.home / "clusters.yaml").write_text(
        (shell.home / "clusters.yaml").read_text().replace("slow:", "slow: {backend: fake, log: x, refuse: closed}\nformer:")
    )
    shell("resume", run.id, "steps=7", expect=1)
    assert "closed" in shell.err
    assert RunDir(run.path).record["config"]["steps"] == 3


def test_an_active_run_keeps_its_keys(shell: Shell) -> None:
    run = RunDir(shell.home / "runs" / shell("submit", *pretrain("--on", "slow")).strip())
    shell("resume", run.id, "steps=7", expect=1)
    assert "already has an active attempt" in shell.err
    assert run.changes == []


def test_the_current_code_replaces_the_submitted_code(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ropewalk.jobs.runs.submit import records

    run = submitted(shell, "shipping")
    code = dict(run.record["code"])
    newer = {**code, "snapshot": "0123456789ab", "diff": "+ a line"}
    monkeypatch.setattr(records, "code_of", lambda tree, root, not_code: newer)
    shell("resume", run.id, "--detach")
    assert RunDir(run.path).record["code"] == code
    run.write_outcome(2, FAILED)
    shell("resume", run.id, "--code", "--detach")
    again = RunDir(run.path)
    assert again.record["code"]["snapshot"] == "0123456789ab"
    assert again.code is not None
    assert "0123456789ab" in str(again.code)
    assert (run.path / "code.0003.diff").read_text() == "+ a line"
    assert again.record["config"] == run.record["config"]


@pytest.mark.soak("two runs; make test runs the program of the new attempt in this process")
def test_a_real_run_starts_with_its_new_keys(shell: Shell) -> None:
    shell("run", "command", "retries.bugs=0", "--", "false", expect=1)
    run = RunDir.all(shell.home / "runs")[0]
    shell("resume", run.id, "command=[touch, made]", "--detach")
    outcome = until(lambda: (o := run.last_outcome()) and o.state.final and o, Patience.RUN)
    assert outcome.state is RunState.SUCCEEDED
    assert run.attempts() == [1, 2]


def test_the_program_of_the_new_attempt_has_the_new_keys(shell: Shell) -> None:
    run = RunDir(shell.home / "runs" / shell("submit", "command", "--on", "slow", "--", "false").strip())
    run.write_outcome(1, FAILED)
    shell("resume", run.id, "command=[touch, made]", "--detach")
    again = RunDir(run.path)
    assert again.attempts() == [1, 2]
    assert run_entry(JobContext(run=again, attempt=2, stop_flag=run.path / "stop-here")) == 0
    assert (shell.home / "made").exists()
