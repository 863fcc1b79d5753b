"""A client that knows `ropewalk` by its JSON alone: submit, kill, why, resume, compare."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.cli.answers.schema import validate
from tests.forked import run_forked
from tests.jobs.evaluation.evaluate.tasks import choice_task
from tests.jobs.tiny import tiny_model
from tests.patience import Patience, until

MODELS = ("one", "two")


def write_files(folder: Path) -> None:
    """Two models, and a task that both are asked."""
    for seed, name in enumerate(MODELS):
        tiny_model(folder / name, seed=seed)
    choice_task(folder, 30)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055)


class Client:
    """Runs commands with --json in a directory; every line that they print follows the schema."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str, expect: int = 0) -> Any:
        """Return the last value that a command prints."""
        done = run_forked(module_command("ropewalk.jobs.cli", *arguments, "--json"), cwd=self.home)
        assert done.returncode == expect, done.stdout + done.stderr
        for line in done.stdout.splitlines():
            validate(arguments[0], line)
        return json.loads(done.stdout.splitlines()[-1])

    def walk(self, folder: str, cluster: str, kill: Callable[[dict[str, Any]], None], keys: Sequence[str] = ()) -> None:
        """Evaluate two models of `folder`, the first of them killed and resumed on the way, and compare them.

        `kill` gets what `show` prints of the run that it kills.
        """

        def submit(model: str) -> str:
            job = ("evaluate", f"model={folder}/{model}", f"tasks=[{folder}/choice.yaml]", *keys)
            assert self("submit", *job, "--on", cluster, "--dry-run")["runs"] == 1
            return str(self("submit", *job, "--on", cluster)["run"])

        first = submit(MODELS[0])
        until(lambda: self("show", first)["state"] == "RUNNING", Patience.CLUSTER)
        kill(self("show", first))
        until(lambda: self._remedy(first) is not None, Patience.CLUSTER, lambda: self("why", first))
        answer = self("why", first)
        assert answer["cause"], answer
        program, *command = answer["remedy"]["command"]
        assert (program, command) == ("ropewalk", ["resume", first])
        assert self(*command, "--detach")["run"] == first
        second = submit(MODELS[1])
        for run in (first, second):
            ended = self("wait", run)
            assert (ended["run"], ended["state"]) == (run, "SUCCEEDED")
        (comparison,) = [each for each in self("compare", first, second)["comparisons"] if each["metric"] == "acc"]
        assert (comparison["task"], comparison["n"]) == ("choice", 30)

    def _remedy(self, run: str) -> Any:
        command = self("why", run)["remedy"]["command"]
        return command if command and command[1] == "resume" else None
