"""The commands of the README through ssh, and on the login node itself: the same answers."""

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.patience import Patience, until
from tests.slurm.ssh.login_node import ROOT, Laptop
from tests.slurm.ssh.test_ssh import add_project, log_of, submitted

MAKE_BASE = """import sys
from pathlib import Path
from tests.jobs.training.finetune.chats import make_base
make_base(Path(sys.argv[1]), text="the rope is long " * 50)
"""

RUN, WAITS = "RUN", "WAITS"  # a run that runs on one or two nodes, and one that is held in the queue
COMMANDS = """
ps --json
ps --all
top --once
top --json --once
nodes --json
models --json
show RUN --json
show RUN
why RUN --json
why WAITS
logs RUN
logs RUN --json
stacks RUN
stacks RUN --json
profile RUN
memory RUN
cost RUN --json
sync RUN
sync --json
checkpoints RUN
best RUN
export RUN model
gc
gc --json
priority WAITS 5
hold WAITS --json
scale RUN 1 --json
scale WAITS 2
resume RUN
rm RUN
shell RUN -- echo x
"""


@pytest.fixture
def laptop(laptop: Laptop) -> Laptop:
    return add_project(laptop)


@pytest.mark.timeout(3600)  # two seconds each on quiet cores
@pytest.mark.soak("33 commands twice; make test compares what `show` says of a run that has ended")
def test_every_command_answers_as_on_the_login_node(laptop: Laptop) -> None:
    laptop.gate.touch()
    held = Laptop(laptop.folder / "held", laptop.node, sbatch={"hold": True})
    (held.project / "train.py").write_text("print('hello')\n")
    runs = {
        RUN: submitted(laptop, "-c", "job.yaml", "launch=nodes", "resources.nodes=1..2"),
        WAITS: submitted(held, "command", "--", "python3", "train.py"),
    }
    until(lambda: "hello" in log_of(runs[RUN]), Patience.STEP)
    until((runs[RUN].attempt_dir(1) / "nodes/node-1.jsonl").exists, Patience.STEP)
    for line in COMMANDS.split("\n")[1:-1]:
        name, *arguments = (runs[word].id if word in runs else word for word in line.split())
        command = [name, "--on", "big", *arguments]
        here, error = masked(laptop(*command, code=None)), masked(laptop.err)
        there = masked(laptop.there(*command, code=None))
        assert (here, error, laptop.code) == (there, masked(laptop.err_there), laptop.code_there), command
    assert runs[WAITS].id in laptop("release", "--on", "big", runs[WAITS].id)
    laptop("cancel", "--on", "big", *(run.id for run in runs.values()))


def masked(text: str) -> str:
    """Return a text without what changes from one moment to the next: numbers, the width of their columns, a process' state."""
    text = text.replace('"state": "running"', '"state": "sleeping"')
    return re.sub(r" {2,}", "  ", re.sub(r"[0-9]+([.:][0-9]+)*", "0", text))


HERE_ONLY = {"help", "lab", "ui"}  # commands of the README that know no cluster
COVERED = {  # by tests of their own
    "chat": "test_the_standard_input_reaches_a_chat",
    "doctor": "test_doctor_says_whether_the_login_node_answers",
    "dev": "test_dev.py",
    "move": "test_moves.py",
    "run": "test_the_commands_of_the_readme_make_the_same_model",
    "submit": "test_the_dry_run_says_what_the_login_node_would_say",
}


def test_every_command_of_the_readme_is_compared() -> None:
    named = set(re.findall(r"`?ropewalk ([a-z]+)", (ROOT / "README.md").read_text()))
    assert named - HERE_ONLY - COVERED.keys() <= {line.split()[0] for line in COMMANDS.split("\n")[1:-1]}


@pytest.mark.timeout(1800)
@pytest.mark.soak("trains and evaluates twice; make test submits programs, and compares `show`")
def test_the_commands_of_the_readme_make_the_same_model(laptop: Laptop) -> None:
    documents = [{"id": str(i), "text": f"the rope is {i} strands long " * 20} for i in range(50)]
    for folder in (laptop.project, laptop.node.home):
        (folder / "docs").mkdir()
        (folder / "docs/a.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        lines = ["input: [docs/*.jsonl]", "output: data", "tokenizer: {train: 300}", "validation_fraction: 0.1"]
        (folder / "preprocess.yaml").write_text("\n".join(lines) + "\n")
        lines = ["data: data", "model: {preset: tiny}", "seq_len: 32", "steps: 5", "batch: {global_batch: 4, micro_batch: 4}"]
        (folder / "pretrain.yaml").write_text("\n".join(lines) + "\n")

    def answers(ropewalk: Callable[..., str]) -> list[dict[str, object]]:
        def job(*arguments: str) -> dict[str, object]:
            return dict(json.loads(ropewalk("run", *arguments, "--on", "big", "--json").splitlines()[-1]))

        data = job("preprocess", "-c", "preprocess.yaml")
        training = job("pretrain", "-c", "pretrain.yaml", "optim.lr=1e-3")
        return [data, training, job("evaluate", f"model={training['run']}", "data=data")]

    changing = {"run", "directory", "output", "model", "data"}  # names and paths
    here, there = (
        [{k: v for k, v in each.items() if k not in changing} for each in answers(way)] for way in (laptop, laptop.there)
    )
    assert [each["state"] for each in here] == ["SUCCEEDED"] * 3
    assert here == there


@pytest.mark.soak("loads two models; a secret's value is standard input too, and make test sends one")
def test_the_standard_input_reaches_a_chat(laptop: Laptop) -> None:
    model = laptop.node.folder / "base"
    subprocess.run([sys.executable, "-c", MAKE_BASE, str(model)], check=True, cwd=ROOT)
    command = ("chat", str(model), "--temperature", "0", "--max-new-tokens", "4", "--json")
    answer = json.loads(laptop(*command, "--on", "big", text="the rope\n\n"))
    assert answer["prompt"] == "the rope"
    assert answer == json.loads(laptop.there(*command, text="the rope\n\n"))
