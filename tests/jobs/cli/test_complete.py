"""Shell completion as a shell asks for it: through the environment."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from ropewalk.cluster.run.directory import RunDir
from tests.jobs.shell import Shell

# CPU seconds of an answer, against those of an interpreter that imports what the command is made with, measured beside it: a core
# that is shared with another program computes half as much a second. 3 are 0.45 s on a quiet core; 2 were measured.
TIMES_THE_IMPORTS = 3.0
IMPORTS = "import typer, pydantic, yaml"


class Asked:
    """Completions of `ropewalk`, requested as a shell does, through the environment, but in this process."""

    def __init__(self, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        self._shell, self._patch = shell, monkeypatch

    def __call__(self, line: str, shell: str = "zsh") -> str:
        """The answer; the last of the words is being typed."""
        with self._patch.context() as patch:
            for name, value in environment(line, shell).items():
                patch.setenv(name, value)
            patch.setenv("PYDANTIC_DISABLE_PLUGINS", "1")  # it would be set for good
            answer = self._shell()
        assert self._shell.err == ""
        return answer

    def bash(self, line: str) -> list[str]:
        """The words that bash would offer."""
        return self(line, "bash").split()


def environment(line: str, shell: str) -> dict[str, str]:
    """Variables that a shell sets while the last of these words is typed."""
    existing = {"_ROPEWALK_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        return {**existing, "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    return {**existing, "_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}


@pytest.fixture
def completion(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(shell, monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create("train", {"job": "pretrain", "cluster": "local", "config": {}}, tmp_path / "runs")


def test_commands_and_jobs(completion: Asked) -> None:
    assert completion.bash("ropewalk su") == ["submit"]
    assert completion.bash("ropewalk run pre") == ["preprocess", "pretrain"]
    assert {"pretrain", "evaluate", "sweep"} <= set(completion.bash("ropewalk submit "))
    assert completion.bash("ropewalk fly a") == []


def test_keys_of_the_job_that_was_typed(completion: Asked) -> None:
    assert {"optim.lr=", "optim.schedule="} <= set(completion.bash("ropewalk run pretrain steps=1 optim."))
    assert completion.bash("ropewalk run preprocess optim.") == []
    assert completion.bash("ropewalk submit --on big pretrain -c x.yaml resources.no")[0] == "resources.nodes="
    assert completion.bash("ropewalk run pretran optim.") == []
    assert completion.bash("ropewalk resume x resources.gp")[0] == "resources.gpus="
    assert completion.bash("ropewalk resume x se") == [], "only resources are completed"


def test_the_last_key_that_fits_comes_with_its_values(completion: Asked) -> None:
    """Otherwise a shell would add a space after the sign of equality."""
    wanted = [f"optim.schedule={value}" for value in ("", "cosine", "linear", "wsd", "constant")]
    assert completion.bash("ropewalk run pretrain optim.sch") == wanted
    assert completion.bash("ropewalk run pretrain optim.schedule = w") == ["wsd"], "bash takes the sign for a word"
    assert completion.bash("ropewalk run pretrain optim.lr") == ["optim.lr=", "optim.lr=0.0003"]


def test_clusters(tmp_path: Path, run: RunDir, completion: Asked) -> None:
    (tmp_path / "clusters.yaml").write_text("big: {backend: slurm}\nteam: {backend: k8s}\n")
    assert completion.bash("ropewalk run pretrain --on ") == ["local", "slurm", "k8s", "big", "team"]
    assert completion.bash("ropewalk doctor --on t") == ["team"]
    (tmp_path / "clusters.yaml").write_text("big: {")
    assert completion.bash("ropewalk doctor --on l") == ["local"], "a broken file is no reason to complain while one types"


@pytest.mark.parametrize("command", ["show", "logs -f", "why", "cancel x", "run pretrain --resume", "submit pretrain --after"])
def test_run_ids(run: RunDir, completion: Asked, command: str) -> None:
    assert completion.bash(f"ropewalk {command} tr") == [run.id]
    assert completion.bash(f"ropewalk {command} la") == ["latest"]


def test_zsh_and_fish_show_what_a_key_means(completion: Asked) -> None:
    assert "optimizer steps of the whole run" in completion("ropewalk run pretrain ste", "zsh")
    assert "steps=\toptimizer steps of the whole run" in completion("ropewalk run pretrain ste", "fish")


def test_completion_answers_while_one_types(tmp_path: Path, run: RunDir) -> None:
    for line in ("ropewalk run pretrain optim.", "ropewalk show "):
        variables = {**os.environ, **environment(line, "bash"), "ROPEWALK_RUNS": str(tmp_path / "runs")}
        times = []
        for _ in range(5):  # in turn: what else runs changes within seconds, and with it what an import costs
            spent = cpu_seconds(["-m", "ropewalk.jobs.cli"], tmp_path, variables, says=True)
            times.append(spent / cpu_seconds(["-c", IMPORTS], tmp_path, variables, says=False))
        assert median(times) < TIMES_THE_IMPORTS, line


def cpu_seconds(arguments: list[str], folder: Path, env: dict[str, str], *, says: bool) -> float:
    """CPU seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (bool(done.stdout.split()), done.stderr) == (says, "")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_installs_itself(tmp_path: Path, shell: str) -> None:
    code = f"""
import sys
import shellingham
from ropewalk.jobs.cli.main import main
shellingham.detect_shell = lambda *_: ({shell!r}, "")
sys.argv = ["ropewalk", "--install-completion"]
main()
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{shell} completion installed" in done.stdout
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_ROPEWALK_COMPLETE" in text for text in written)
