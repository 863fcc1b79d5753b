"""A user's project may have folders and modules that are called like the top folders of this program."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.installed import run

SHADOWS = ("cluster.py", "slurm.py", "sharding.py", "datapipe.py", "k8s/__init__.py")
CALLS = """
import ropewalk
from jobs.mine import add

if __name__ == "__main__":
    print(ropewalk.submit(add, 1, 2).result(), [future.result() for future in ropewalk.map(add, [1, 2], [3, 4])])
    print(ropewalk.submit(add, 5, 6, by_value=True).result())
"""
PRETRAIN = {
    "data": "tokens",
    "model": {"preset": "tiny"},
    "seq_len": 32,
    "steps": 3,
    "batch": {"global_batch": 4, "micro_batch": 4},
}
SCORES = {"scores": {"scorers": {"mine": {"function": "jobs.mine:score", "drop_above": 0.9}}}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with all colliding names; those that nobody should import fail when they are."""
    folder = tmp_path / "project"
    (folder / "jobs").mkdir(parents=True)
    (folder / "k8s").mkdir()
    for name in SHADOWS:
        (folder / name).write_text(f"raise RuntimeError('{name} of the user was imported')\n")
    (folder / "jobs/__init__.py").write_text("")
    (folder / "jobs/mine.py").write_text(
        "def add(a, b):\n    return a + b\n\n\ndef score(texts):\n    return [float(text.startswith('bad')) for text in texts]\n"
    )
    (folder / "calls.py").write_text(CALLS)
    (folder / "t.py").write_text("import ropewalk\nropewalk.log({'train/loss': 1.5}, step=1)\nprint('done', ropewalk.run.id)\n")
    texts = [f"{'bad' if number % 10 == 0 else 'good'} document {number} of a few words" for number in range(200)]
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def succeed(command: Path, project: Path, *arguments: str) -> dict[str, object]:
    """Run a job to its end, and return its last line."""
    done = run(command, project, "run", "--json", *arguments)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_programs_and_functions(command: Path, project: Path) -> None:
    ended = succeed(command, project, "command", "--", str(command.parent / "python"), "t.py")
    assert ended["state"] == "SUCCEEDED"
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "ROPEWALK_RUNS"}}
    calls = [command.parent / "python", "calls.py"]
    done = subprocess.run(calls, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-2:] == ["3 [4, 6]", "11"], done.stderr
    assert re.search(r"SUCCEEDED", run(command, project, "ps", "--all").stdout)
    assert run(command, project, "why", str(ended["run"])).returncode == 0


def test_data_training_and_a_sweep(command: Path, project: Path) -> None:
    (project / "clean.json").write_text(
        json.dumps({"input": ["docs.jsonl"], "output": "tokens", "tokenizer": {"train": 300}, "filters": SCORES})
    )
    cleaned = succeed(command, project, "preprocess", "-c", "clean.json", "validation_fraction=0.1")
    assert cleaned["state"] == "SUCCEEDED"
    manifest = json.loads((project / "tokens/manifest.json").read_text())
    assert manifest["rejected"]["reasons"]["scores.mine"] == 20, "the scorer of the project was used"
    (project / "train.json").write_text(json.dumps(PRETRAIN))
    assert succeed(command, project, "pretrain", "-c", "train.json")["step"] == 3
    sweep = {
        "job": "pretrain",
        "base": PRETRAIN,
        "space": {"optim.lr": {"choice": [0.001, 0.01]}},
        "metric": "validation/loss",
        "mode": "min",
        "trials": 2,
    }
    (project / "sweep.json").write_text(json.dumps(sweep))
    assert succeed(command, project, "sweep", "-c", "sweep.json")["state"] == "SUCCEEDED"
