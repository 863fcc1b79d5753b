"""`ropewalk shell` on this machine: where the run is, with its variables."""

import subprocess
import sys

from ropewalk.cluster.process.kill import processes_with
from ropewalk.jobs.runs.show.cancel import cancel_runs
from tests.jobs.orchestration.command.conftest import start
from tests.jobs.orchestration.command.programs import Start, ended
from tests.patience import Patience, until
from tests.terminal import Terminal

__all__ = ["start"]
ROPEWALK = [sys.executable, "-m", "ropewalk.jobs.cli"]


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ROPEWALK, "shell", *arguments], capture_output=True, text=True, check=False)


def test_a_shell_has_the_folder_and_the_variables_of_its_run(start: Start) -> None:
    run = start(["sleep", "1000"], "launch=once")
    until(lambda: run.attempts() and (run.attempt_dir(1) / "agents.jsonl").exists(), Patience.START)
    until(lambda: shell(run.id, "--", "true").returncode == 0, Patience.START)
    code = "import os; print(os.environ['ROPEWALK_RUN'], os.environ['ROPEWALK_ATTEMPT'], os.getcwd())"
    done = shell(run.id, "--", "python", "-c", code)
    assert done.stdout.split() == [str(run.path), "1", str(run.project)], done.stderr
    assert shell(run.id, "--", "sh", "-c", "exit 7").returncode == 7
    terminal = Terminal([*ROPEWALK, "shell", run.id])
    terminal.type('echo "here: $ROPEWALK_ATTEMPT"; exit 3')
    terminal.read_until("here: 1")
    assert terminal.end() == 3
    assert f"{run.id} has no node 7; its nodes: 0" in shell(run.id, "--node", "7").stderr
    list(cancel_runs([run.id]))
    ended(run)
    refused = shell(run.id)
    assert (refused.returncode, "a shell needs a running run" in refused.stderr) == (2, True)


def test_a_guard_ends_what_a_shell_has_started(start: Start) -> None:
    run = start(["sleep", "1000"], "launch=once")
    program = [sys.executable, "-m", "ropewalk.jobs.runs.program.shell", "--token", "a-token"]
    script = "trap '' HUP; setsid sleep 4321 & echo began; sleep 4321"
    with subprocess.Popen([*program, "--guard", str(run.path)], stdin=subprocess.PIPE) as guard:
        terminal = Terminal([*program, str(run.path), "--", "sh", "-c", script])
        terminal.read_until("began")

        def left() -> list[int]:
            return [process.pid for process in processes_with({"ROPEWALK_SHELL": "a-token"})]

        until(lambda: len(left()) == 3)
        assert guard.stdin is not None
        guard.stdin.close()
        until(lambda: not left(), Patience.START)
        terminal.end()
