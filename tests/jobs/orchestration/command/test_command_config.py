"""Configuration and name of a command; nothing is trained."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.runs.program.verdict import LostPeerError, ProgramFailedError, judge, log_of, log_size, tail
from tests.jobs.orchestration.command.programs import ROOT, Start, ended, script


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"command": []}, "command"),
        ({"command": ["x"], "environment": {"WANDB_API_KEY": "1"}}, "looks like a secret"),
        ({"command": ["x"], "metrics": {"loss": "loss="}}, "has no group"),
        ({"command": ["x"], "metrics": {"loss": "("}}, "is not a regular expression"),
        ({"command": ["x"], "launch": "once", "resources": {"nodes": 2}}, "use launch=nodes"),
        ({"command": ["x"], "launch": "nodes", "resources": {"ranks_per_node": 2}}, "one process per node"),
    ],
)
def test_mistakes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CommandConfig, values)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "train.py", "--lr", "1"], "train"),
        (["/usr/bin/python3.11", "-u", "-m", "mylab.pretrain", "x.py"], "pretrain"),
        (["torchrun", "--nproc-per-node=2", "src/fine_tune.py"], "fine_tune"),
        (["accelerate", "launch", "--config", "a.yaml", "train.py"], "train"),
        (["env", "A=1", "./simulate", "3"], "simulate"),
        (["bash", "run.sh", "2"], "run"),
        (["bash", "-c", "cd here && python train.py | tee log"], "train"),
        (["bash", "-c", "echo hello"], "echo"),
        (["bash", "-c", "python -c 'print(1)'"], "command"),
        (["bash", "-c", "echo 'half"], "command"),
        (["python", "-c", "import os; print(os)"], "command"),
    ],
)
def test_a_run_is_called_after_its_program(command: list[str], name: str) -> None:
    resolved = load_config(CommandConfig, {"command": command}).resolved()
    assert resolved.name == name
    assert load_config(CommandConfig, {"command": command, "name": "mine"}).resolved().name == "mine"


def one_of_two_that_said(text: str, folder: Path) -> JobContext:
    """A rank of two whose program has printed a text."""
    run = RunDir.create("x", {"job": "command", "config": {}, "resources": {}}, folder)
    context = JobContext(run=run, attempt=run.begin_attempt(), world_size=2)
    log = log_of(context)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return context


def test_what_an_earlier_group_has_said_is_not_this_ones(tmp_path: Path) -> None:
    context = one_of_two_that_said("RuntimeError: Connection closed by peer\n", tmp_path)
    with pytest.raises(LostPeerError):
        judge(1, None, context, tail(context, 0))
    since = log_size(context)
    with log_of(context).open("a") as log:
        log.write("ValueError: a bug, and to be counted as one\n")
    with pytest.raises(ProgramFailedError, match="ValueError: a bug"):
        judge(1, None, context, tail(context, since))


def test_a_fault_that_nccl_names_is_the_programs_own(tmp_path: Path) -> None:
    message = "torch.distributed.DistBackendError: ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0\n"
    context = one_of_two_that_said(message, tmp_path)
    with pytest.raises(ProgramFailedError, match="Duplicate GPU detected"):
        judge(1, None, context, tail(context, 0))


def test_a_word_that_would_be_masked_is_refused(start: Start) -> None:
    with pytest.raises(ConfigError, match="command: contains what looks like a secret"):
        start(["train", "--data", "s3://me:password@host/data"], "launch=once")


def test_the_words_behind_two_dashes_are_the_program(tmp_path: Path) -> None:
    environment = {**os.environ, "ROPEWALK_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-m", "ropewalk.jobs.cli", "run"]
    program = ["--", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--lr", "1e-3", "steps=3"]
    done = subprocess.run(
        [*command, "command", "launch=once", "--json", *program], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "runs").glob("*/attempts/0001/logs/rank-0.log")
    assert "['--lr', '1e-3', 'steps=3']" in log.read_text()
    done = subprocess.run(
        [*command, "evaluate", *program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "only the job `command` runs a program" in done.stderr
    done = subprocess.run([*command, "command"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert "no program given" in str(done.stderr)


def test_values_stand_for_their_names(start: Start, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"lr": {lr}, "nested": {"a": 1}}')
    text = "import os, sys\nprint(sys.argv[1:3], os.environ['LR'], open(sys.argv[3]).read(), flush=True)"
    around = ("values={lr: 0.5, size: big}", "environment={LR: '{lr}'}", f"fill=[{tmp_path / 'settings.json'}]", "launch=once")
    run = start([*script(tmp_path, text), "--lr={lr}", "{size}-{other}", "settings.json"], *around)
    assert ended(run).state is RunState.SUCCEEDED
    output = (run.log_dir(1) / "rank-0.log").read_text()
    assert """['--lr=0.5', 'big-{other}'] 0.5 {"lr": 0.5, "nested": {"a": 1}}""" in output
    assert "{lr}" in (tmp_path / "settings.json").read_text(), "the user's own file stays"


def test_setup_environment_and_shell_lines(start: Start, tmp_path: Path) -> None:
    run = start(
        ["bash", "-c", "echo $GREETING $PLACE; pwd"],
        "launch=once",
        "setup=['export PLACE=world']",
        "environment={GREETING: hello}",
    )
    assert ended(run).state is RunState.SUCCEEDED
    output = (run.log_dir(1) / "rank-0.log").read_text()
    assert "hello world" in output
    assert str(tmp_path) in output
