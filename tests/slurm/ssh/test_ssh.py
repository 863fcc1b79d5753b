"""Commands through ssh on a real login node of a real Slurm cluster."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.errors import EXIT_INTERRUPTED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.ssh.connection import NOTICE_ABSENCE, _notice_absence
from tests.jobs.shell import Shell
from tests.patience import Patience, until
from tests.slurm.conftest import end_jobs
from tests.slurm.ssh.login_node import Laptop, LoginNode, need_sshd
from tests.slurm.toy import finish, said

PROGRAM = """import os, sys, time, settings
print("hello", settings.NAME, open("notes.txt").read(), flush=True)
while os.path.exists(sys.argv[1]):
    if os.path.exists(os.environ["ROPEWALK_STOP_FLAG"]):
        sys.exit(85)
    time.sleep(0.1)
"""


def add_project(laptop: Laptop) -> Laptop:
    """Give a laptop a project, whose program runs as long as the file `gate` exists."""
    laptop.gate = laptop.folder / "gate"
    (laptop.project / "train.py").write_text(PROGRAM)
    (laptop.project / "settings.py").write_text('NAME = "one"\n')
    (laptop.project / "notes.txt").write_text("a note")
    lines = ["run: command", f"command: [python3, train.py, {laptop.gate}]", "launch: once", "resources: {grace_seconds: 20}"]
    (laptop.project / "job.yaml").write_text("\n".join(lines) + "\n")
    return laptop


@pytest.fixture
def laptop(laptop: Laptop) -> Laptop:
    return add_project(laptop)


@pytest.fixture
def holding(node: LoginNode, tmp_path: Path) -> Iterator[Laptop]:
    """A laptop whose jobs are held in the queue."""
    node.write_config(node.port)
    yield add_project(Laptop(tmp_path / "laptop", node, sbatch={"hold": True}))
    end_jobs(*(f"ropewalk-{run.id}" for run in RunDir.all(node.runs)))


@pytest.fixture
def there(laptop: Laptop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command on the login node itself, in this process."""
    for name, value in laptop.environment_there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(laptop.node.home)
    return Shell(capsys, monkeypatch, laptop.folder)


def submitted(laptop: Laptop, *arguments: str) -> RunDir:
    return RunDir(laptop.node.runs / laptop("submit", "--on", "big", *arguments).split()[-1])


def log_of(run: RunDir) -> str:
    return "".join(path.read_text() for path in run.path.glob("attempts/*/logs/rank-0.log"))


def test_a_run_from_submission_to_its_end(laptop: Laptop, there: Shell) -> None:
    laptop.gate.touch()
    with laptop.start("run", "-c", "job.yaml", "--on", "big") as following:
        assert following.stdout is not None
        assert any("hello one a note" in line for line in following.stdout)
        following.send_signal(signal.SIGINT)
        _, error = following.communicate()
    assert following.returncode == EXIT_INTERRUPTED
    (run,) = [run for run in RunDir.all(laptop.node.runs) if f"{run.id} keeps running" in error]
    assert run.last_outcome() is None
    assert run.record["project"]["root"] == str(laptop.project)
    assert run.record["command"][:2] == ["ropewalk", "run"]
    with laptop.start("logs", "-f", run.id) as killed:
        assert killed.stdout is not None
        assert any("hello one a note" in line for line in killed.stdout)
        assert laptop.node.helpers()
        killed.kill()
        killed.communicate()
    until(lambda: not laptop.node.helpers(), Patience.SIGNAL)  # nothing remains of a client that is killed
    assert f"cancelling {run.id}" in laptop("cancel", run.id[:-1]) or run.id in laptop.out
    assert finish(run).state is RunState.CANCELLED, said(run)
    laptop.gate.unlink()
    (laptop.project / "settings.py").write_text('NAME = "two"\n')
    assert "hello two a note" in laptop("resume", run.id, "--code")  # which follows it to its end
    assert finish(run).state is RunState.SUCCEEDED, said(run)
    assert run.attempts() == [1, 2]
    assert laptop("show", run.id, "--json") == there("show", run.id, "--json")  # make soak compares all commands
    assert not list(Path(laptop.folder).rglob("run.yaml")), "nothing of a run lies on the laptop"


@pytest.mark.soak("make test follows a run that is resumed, and returns exit codes of mistakes")
def test_run_follows_to_the_end_and_returns_its_exit_code(laptop: Laptop) -> None:
    (laptop.project / "train.py").write_text("print('hello')\nraise SystemExit(3)\n")
    assert "hello" in laptop("run", "-c", "job.yaml", "--on", "big", code=1)
    assert "ended as FAILED" in laptop.err


def test_files_that_a_command_writes_arrive(laptop: Laptop) -> None:
    run = RunDir.create("toy", {"job": "command", "config": {}, "cluster": "big"}, laptop.node.runs)
    lines = [{"step": step, "attempt": 1, "time": step, "train/loss": 1 / step} for step in (1, 2, 3)]
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert laptop("show", "--on", "big", run.id, "plots/curves.png").strip() == "plots/curves.png"
    assert (laptop.project / "plots/curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list((laptop.node.runs / ".from").glob("*/.output-*"))
    laptop("export", "--on", "big", run.id, "../model", code=2)
    assert "../model: files from login.big arrive below the current directory" in laptop.err
    shutil.rmtree(run.path)


@pytest.mark.soak(
    "four interpreters; test_a_cluster_that_is_well has the checks, test_without_a_key_and_a_terminal_the_remedy_is_named a"
    " refused login"
)
def test_doctor_says_whether_the_login_node_answers(laptop: Laptop) -> None:
    checks = {check["name"]: check for check in json.loads(laptop("doctor", "--on", "big", "--json", code=None))["checks"]}
    assert checks["ssh"]["ok"]
    assert "login.big answers" in checks["ssh"]["detail"]
    assert checks["controller"]["ok"]
    laptop.node.write_config(laptop.node.port, key=False)
    (check,) = json.loads(laptop("doctor", "--on", "big", "--json", code=1))["checks"]
    assert not check["ok"]
    assert "Permission denied" in check["detail"]


def test_mistakes_are_reported_as_on_the_login_node(laptop: Laptop) -> None:
    laptop("submit", "-c", "job.yaml", "nonsense=1", "--on", "big", code=2)
    assert "nonsense" in laptop.err
    laptop("show", "nothing", "--on", "big", code=2)
    assert "no run 'nothing'" in laptop.err
    laptop("show", "nothing", code=2)
    assert str(laptop.node.runs) not in laptop.err
    assert not laptop.node.runs.exists() or not [run for run in RunDir.all(laptop.node.runs) if not run.attempts()]


@pytest.mark.soak(
    "four interpreters; test_docs_commands.py dry-runs submissions, test_mistakes_are_reported_as_on_the_login_node asks"
    " the login node"
)
def test_the_dry_run_says_what_the_login_node_would_say(laptop: Laptop) -> None:
    assert "#SBATCH" in laptop("submit", "-c", "job.yaml", "--on", "big", "--script")
    planned = json.loads(laptop("submit", "-c", "job.yaml", "--on", "big", "--dry-run", "--json"))
    assert planned["job"] == "command"


@pytest.mark.soak("four interpreters; test_a_submission_that_is_cut_makes_one_job brings a changed file to what is there")
def test_only_what_is_missing_travels(holding: Laptop) -> None:
    laptop = holding
    (laptop.project / "large.bin").write_bytes(bytes(range(256)) * 4096)
    first = submitted(laptop, "-c", "job.yaml", "resources.nodes=1")
    (laptop.project / "settings.py").write_text('NAME = "three"\n')
    shutil.rmtree(laptop.node.runs / ".received", ignore_errors=True)
    second = submitted(laptop, "-c", "job.yaml", "resources.nodes=1")
    copies = [laptop.node.runs / ".code" / run.record["project"]["snapshot"] for run in (first, second)]
    assert copies[0] != copies[1]
    assert (copies[1] / "settings.py").read_text() == 'NAME = "three"\n'
    assert (copies[1] / "large.bin").read_bytes() == (laptop.project / "large.bin").read_bytes()
    assert not list((laptop.node.runs / ".received").iterdir())


def test_small_inputs_travel_and_relative_outputs_stay_there(holding: Laptop) -> None:
    laptop = holding
    (laptop.project / "docs").mkdir()
    (laptop.project / "docs/a.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "text": f"word {i} " * 20}) + "\n" for i in range(50))
    )
    run = submitted(laptop, "preprocess", "input=[docs/*.jsonl]", "output=prepared", "tokenizer={train: 300}")
    (source,), output = run.record["config"]["input"], Path(run.record["config"]["output"])
    assert (Path(source).parent / "a.jsonl").read_bytes() == (laptop.project / "docs/a.jsonl").read_bytes()
    assert output.is_relative_to(laptop.node.runs)


def test_without_a_key_and_a_terminal_the_remedy_is_named(laptop: Laptop) -> None:
    laptop.node.write_config(laptop.node.port, key=False)
    laptop("ps", "--on", "big", code=1)
    assert "login.big: " in laptop.err
    assert "Permission denied" in laptop.err
    assert "without a terminal ssh cannot ask for a password or code: use a key" in laptop.err
    assert laptop.err.count("\n") == 1


def test_the_users_own_signs_of_life_win(tmp_path: Path) -> None:
    need_sshd()
    config = tmp_path / "config"
    for lines, ours in (("", NOTICE_ABSENCE), ("Host login.*\n  ServerAliveInterval 240\n", ())):
        config.write_text(lines)
        assert _notice_absence(["ssh", "-F", str(config), "-G", "--", "login.big"]) == ours


def test_a_python_without_the_packages_is_named(laptop: Laptop) -> None:
    file = laptop.folder / "clusters.yaml"
    file.write_text(file.read_text().replace(f"python: {sys.executable}", "python: /usr/bin/python3"))
    laptop("ps", "--on", "big", code=1)
    assert laptop.err.startswith("error: ")  # it is not shown before as well
    assert laptop.err.count("No module named") == 1
    assert "name a Python with Ropewalk's packages by `python`" in laptop.err


def test_what_setup_prints_does_no_harm(laptop: Laptop) -> None:
    file = laptop.folder / "clusters.yaml"
    file.write_text(file.read_text() + "  setup: [echo loaded, cat, 'export WORD=word']\n")
    (laptop.node.home / ".bash_profile").write_text("echo welcome\n")
    try:
        assert json.loads(laptop("ps", "--all", "--json", "--on", "big")) is not None
    finally:
        (laptop.node.home / ".bash_profile").unlink()
    assert "loaded" in laptop.err
