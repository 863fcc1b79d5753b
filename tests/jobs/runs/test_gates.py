"""`export --gated`: what the runs that judged a checkpoint said of it."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.names import RESULT
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.models.gates import require_passed
from ropewalk.jobs.training.loop.weights.content_hash import hash_of_checkpoint
from tests.jobs.models.registry.registered import trained


@pytest.fixture
def model(tmp_path: Path) -> RunDir:
    return trained(tmp_path, 3, 4, name="model")


def judged(of: RunDir, job: str, passed: bool, step: int = 4, state: RunState | None = None, **config: Any) -> None:
    weights = hash_of_checkpoint(of, step)
    record = {"job": job, "config": {"model": of.id, "require": {"quiz": ">= 0.5"}, **config}, "cluster": "local"}
    run = RunDir.create(job, record, of.path.parent)
    number = run.begin_attempt()
    failed = [] if passed else [{"words": "quiz is 0.4 ± 0.02, and must be >= 0.5"}]
    write_json(run.attempt_dir(number) / RESULT, {"gate": {"passed": passed, "failed": failed}, "model_weights": weights})
    ended = state or (RunState.SUCCEEDED if passed else RunState.REFUSED)
    run.write_outcome(number, Outcome(state=ended, exit_code=0, cause="done"))


def test_a_checkpoint_that_no_gate_has_judged_is_refused(model: RunDir) -> None:
    with pytest.raises(ConfigError, match="no gate has judged its checkpoint of step 4"):
        require_passed(model, 4, hash_of_checkpoint(model, 4), model.path.parent)
    judged(model, "evaluate", True, step=3)  # another checkpoint
    judged(model, "evaluate", True, require={})  # nothing was asked
    judged(trained(model.path.parent), "evaluate", True)  # another model
    judged(model, "evaluate", True, state=RunState.CANCELLED)
    with pytest.raises(ConfigError, match="no gate has judged"):
        require_passed(model, 4, hash_of_checkpoint(model, 4), model.path.parent)


def test_the_newest_gate_of_each_job_decides(model: RunDir) -> None:
    judged(model, "evaluate", False)
    with pytest.raises(ConfigError, match=r"its checkpoint of step 4 did not pass the gate of .*: quiz is 0\.4"):
        require_passed(model, 4, hash_of_checkpoint(model, 4), model.path.parent)
    judged(model, "evaluate", True, model=str(model.path))  # by whatever name
    assert [item.run.record["job"] for item in require_passed(model, 4, hash_of_checkpoint(model, 4), model.path.parent)] == [
        "evaluate"
    ]
    judged(model, "audit", False)
    with pytest.raises(ConfigError, match="the gate of audit"):
        require_passed(model, 4, hash_of_checkpoint(model, 4), model.path.parent)


def test_the_command_asks_before_it_writes(model: RunDir, tmp_path: Path, shell_of: Any) -> None:
    shell = shell_of(model.path.parent)
    shell("export", model.id, str(tmp_path / "out"), "--step", "4", "--gated", expect=2)
    assert "no gate has judged" in shell.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def shell_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    from tests.jobs.shell import Shell

    def make(root: Path) -> Shell:
        monkeypatch.setenv("ROPEWALK_RUNS", str(root))
        return Shell(capsys, monkeypatch, tmp_path)

    return make
