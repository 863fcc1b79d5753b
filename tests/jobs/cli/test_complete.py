"""Shell completion as a shell asks for it: through the environment of a process."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.run.directory import RunDir

CPU_SECONDS = 0.5


def ask(words: str, tmp_path: Path, shell: str = "zsh") -> str:
    """What `ropewalk` answers a shell in which these words stand; the last one is being typed."""
    environment = {**os.environ, "_ROPEWALK_COMPLETE": f"complete_{shell}", "ROPEWALK_RUNS": str(tmp_path / "runs")}
    if shell == "bash":
        parts = words.split(" ")
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(parts) - 1)}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout


def bash(words: str, tmp_path: Path) -> list[str]:
    return ask(words, tmp_path, "bash").split()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "clusters.yaml").write_text("big: {backend: slurm}\nteam: {backend: k8s}\n")
    return RunDir.create("train", {"job": "pretrain", "cluster": "local", "config": {}}, tmp_path / "runs")


def test_commands_and_jobs(tmp_path: Path) -> None:
    assert bash("ropewalk su", tmp_path) == ["submit"]
    assert bash("ropewalk run pre", tmp_path) == ["preprocess", "pretrain"]
    assert {"pretrain", "evaluate", "sweep"} <= set(bash("ropewalk submit ", tmp_path))
    assert bash("ropewalk fly a", tmp_path) == []


def test_keys_of_the_job_that_was_typed(tmp_path: Path) -> None:
    assert {"optim.lr=", "optim.schedule="} <= set(bash("ropewalk run pretrain steps=1 optim.", tmp_path))
    assert bash("ropewalk run preprocess optim.", tmp_path) == []
    assert bash("ropewalk submit --on big pretrain -c x.yaml resources.no", tmp_path)[0] == "resources.nodes="
    assert bash("ropewalk run pretran optim.", tmp_path) == []
    assert bash("ropewalk resume x resources.gp", tmp_path)[0] == "resources.gpus="
    assert bash("ropewalk resume x se", tmp_path) == [], "a run's other keys never change"


def test_the_last_key_that_fits_comes_with_its_values(tmp_path: Path) -> None:
    """Otherwise a shell would add a space after the sign of equality."""
    wanted = [f"optim.schedule={value}" for value in ("", "cosine", "wsd", "constant")]
    assert bash("ropewalk run pretrain optim.sch", tmp_path) == wanted
    assert bash("ropewalk run pretrain optim.schedule = w", tmp_path) == ["wsd"], "bash takes the sign for a word"
    assert bash("ropewalk run pretrain optim.lr", tmp_path) == ["optim.lr=", "optim.lr=0.0003"]


def test_clusters(tmp_path: Path, run: RunDir) -> None:
    assert bash("ropewalk run pretrain --on ", tmp_path) == ["local", "slurm", "k8s", "big", "team"]
    assert bash("ropewalk doctor --on t", tmp_path) == ["team"]
    (tmp_path / "clusters.yaml").write_text("big: {")
    assert bash("ropewalk doctor --on l", tmp_path) == ["local"], "a broken file is no reason to complain while one types"


@pytest.mark.parametrize("command", ["show", "logs -f", "why", "cancel x", "run pretrain --resume", "submit pretrain --after"])
def test_run_ids(tmp_path: Path, run: RunDir, command: str) -> None:
    assert bash(f"ropewalk {command} tr", tmp_path) == [run.id]
    assert bash(f"ropewalk {command} la", tmp_path) == ["latest"]


def test_zsh_and_fish_show_what_a_key_means(tmp_path: Path) -> None:
    assert "optimizer steps of the whole run" in ask("ropewalk run pretrain ste", tmp_path, "zsh")
    assert "steps=\toptimizer steps of the whole run" in ask("ropewalk run pretrain ste", tmp_path, "fish")


def test_completion_answers_while_one_types(tmp_path: Path, run: RunDir) -> None:
    for words in ("ropewalk run pretrain optim.", "ropewalk show "):
        spent = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert bash(words, tmp_path)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(spent) < CPU_SECONDS, words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_installs_itself(tmp_path: Path, shell: str) -> None:
    command = [sys.executable, "-c", f"import shellingham; shellingham.detect_shell = lambda *_: ({shell!r}, '');"
               "import sys; sys.argv = ['ropewalk', '--install-completion']; from jobs.cli.main import main; main()"]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{shell} completion installed" in done.stdout
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_ROPEWALK_COMPLETE" in text for text in written)
