"""`ropewalk dev` and `shell` on nodes of a Slurm cluster behind ssh, with what people use: ssh, sftp, ports, a terminal."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.errors import EXIT_INTERRUPTED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from tests.dev_node import DevNode, jupyter_packages
from tests.slurm.ssh.login_node import Laptop
from tests.slurm.toy import finish, said
from tests.terminal import Terminal, check_end_with_client


@pytest.fixture
def held(laptop: Laptop) -> Iterator[tuple[DevNode, RunDir]]:
    (laptop.project / "train.py").write_text("print('hello')\n")
    answer = json.loads(laptop("dev", "--on", "big", "resources.grace_seconds=20", "--json"))
    run = RunDir(laptop.node.runs / answer["run"])
    yield DevNode(answer, laptop.environment), run
    if run.last_outcome() is None:
        laptop("cancel", run.id, code=None)
        finish(run)


@pytest.mark.soak(
    "a minute over two hops; test_sessions.py has sessions at a real sshd, test_a_node_is_held_until_it_is_cancelled a held node"
)
def test_ssh_sftp_and_a_forwarded_port_reach_the_node_and_end_with_their_client(
    laptop: Laptop, held: tuple[DevNode, RunDir], tmp_path: Path
) -> None:
    node, run = held
    job = str(run.attempt_details(1)["handle"]).removeprefix("slurm:")
    assert node("ssh", node.host, 'echo "$SLURM_JOB_ID"').decode() == f"{job}\n"
    assert Path(node.folder).is_relative_to(run.path), "sessions change a copy of their own"
    node.check_reached_until_killed(1, str(run.path), tmp_path)
    assert run.last_outcome() is None, "the allocation goes on"
    laptop("cancel", run.id)
    assert finish(run).state is RunState.CANCELLED, said(run)


@pytest.mark.soak("installs Jupyter; test_sessions.py has sessions at a real sshd")
def test_a_jupyter_kernel_computes_on_the_node(held: tuple[DevNode, RunDir]) -> None:
    node, _ = held
    node.check_jupyter(jupyter_packages())


def test_top_at_a_terminal_passes_through_ssh(laptop: Laptop) -> None:
    top = Terminal(command_at_terminal(laptop, "top", "--on", "big"))
    top.read_until("no run is active")
    top.resize(30, 150)
    top.read_until(" " * 149)  # the page fills the screen
    top.type("\x03", end="")  # Ctrl-C
    assert top.end() == EXIT_INTERRUPTED


@pytest.mark.soak(
    "make test has top at a terminal through ssh, a shell in jobs/runs/test_shell.py, and sessions at an sshd in test_sessions.py"
)
def test_a_shell_at_a_terminal_passes_through_ssh(laptop: Laptop) -> None:
    run = RunDir(
        laptop.node.runs
        / laptop("submit", "command", "resources.grace_seconds=20", "--on", "big", "--", "sleep", "1000").split()[-1]
    )
    terminal = Terminal(command_at_terminal(laptop, "shell", "--wait", run.id))
    terminal.type('stty size; echo "attempt $ROPEWALK_ATTEMPT"; trap "" HUP; sleep 4321 & sleep 4321')
    terminal.read_until("attempt 1")
    check_end_with_client(str(run.path), terminal.kill, count=2)
    assert run.last_outcome() is None, "the run goes on"
    laptop("cancel", run.id)
    finish(run)


def command_at_terminal(laptop: Laptop, *arguments: str) -> list[str]:
    variables = [f"{name}={value}" for name, value in laptop.environment.items()]
    return ["env", *variables, *laptop.command, *arguments]
