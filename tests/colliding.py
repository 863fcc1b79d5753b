"""A user's project whose folders and modules are called like the top folders of this program, and what runs in it."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.installed import run

SHADOWS = ("cluster.py", "slurm.py", "sharding.py", "datapipe.py", "k8s/__init__.py")
MINE = """
def add(a, b):
    return a + b


def score(texts):
    return [float(text.startswith("bad")) for text in texts]
"""
CALLS = """
import sys

import ropewalk
from jobs.mine import add

if __name__ == "__main__":
    on = sys.argv[1]
    print([future.result() for future in ropewalk.map(add, [1, 2], [3, 4], on=on)])
    print(ropewalk.submit(add, 5, 6, by_value=True, on=on).result())
"""
PROGRAM = """
import ropewalk

ropewalk.log({"train/loss": 1.5}, step=1)
print("done", ropewalk.run.id)
"""
SCORES = {"scores": {"scorers": {"mine": {"function": "jobs.mine:score", "drop_above": 0.9}}}}
PREPROCESS = {"input": ["docs.jsonl"], "output": "tokens", "tokenizer": {"train": 300}, "filters": SCORES}
PRETRAIN = {
    "data": "tokens",
    "model": {"preset": "tiny"},
    "seq_len": 32,
    "steps": 3,
    "batch": {"global_batch": 4, "micro_batch": 4},
}
SWEEP = {
    "job": "pretrain",
    "base": PRETRAIN,
    "space": {"optim.lr": {"choice": [0.001, 0.01]}},
    "metric": "validation/loss",
    "mode": "min",
    "trials": 2,
}


def make_project(folder: Path) -> Path:
    """Write the project; those of its modules that nobody should import fail when they are."""
    (folder / "jobs").mkdir(parents=True)
    (folder / "k8s").mkdir()
    for name in SHADOWS:
        (folder / name).write_text(f"raise RuntimeError('{name} of the user was imported')\n")
    (folder / "jobs/__init__.py").write_text("")
    for name, text in {"jobs/mine.py": MINE, "calls.py": CALLS, "program.py": PROGRAM}.items():
        (folder / name).write_text(text)
    texts = [f"{'bad' if number % 10 == 0 else 'good'} document {number} of a few words" for number in range(200)]
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    for name, config in {"preprocess": PREPROCESS, "pretrain": PRETRAIN, "sweep": SWEEP}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def colliding(tmp_path: Path) -> Path:
    """The folder of such a project."""
    return make_project(tmp_path / "project")


def succeed(command: Path, project: Path, *arguments: str) -> Mapping[str, object]:
    """Run a job of the installed program to its end; returns the object of its last line."""
    done = run(command, project, "run", "--json", *arguments)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    assert result["state"] == "SUCCEEDED"
    return result


def run_program(command: Path, project: Path, *options: str, python: str | None = None) -> Mapping[str, object]:
    """Run a program of the project as `ropewalk run command` does."""
    return succeed(command, project, "command", *options, "--", python or str(command.parent / "python"), "program.py")


def call_functions(command: Path, project: Path, on: str = "local") -> None:
    """Map a function of the project's own package `jobs`, and submit it by value."""
    unset = {"PYTHONPATH", "ROPEWALK_RUNS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    calls = [command.parent / "python", "calls.py", on]
    done = subprocess.run(calls, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-2:] == ["[4, 6]", "11"], done.stderr


def train(command: Path, project: Path, *options: str) -> None:
    """Prepare data with a scorer of the project, and train on it."""
    succeed(command, project, "preprocess", "-c", "preprocess.json", "validation_fraction=0.1", *options)
    manifest = json.loads((project / "tokens/manifest.json").read_text())
    assert manifest["rejected"]["reasons"]["scores.mine"] == 20, "the scorer of the project was used"
    assert succeed(command, project, "pretrain", "-c", "pretrain.json", *options)["step"] == 3


def sweep(command: Path, project: Path, *options: str) -> None:
    """Sweep over trainings on the data that `train` prepared."""
    succeed(command, project, "sweep", "-c", "sweep.json", *options)
