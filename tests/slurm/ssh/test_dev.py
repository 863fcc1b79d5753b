"""`ropewalk dev` and `shell` on nodes of a Slurm cluster behind ssh, with what people use: ssh, sftp, ports, a terminal."""

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.errors import EXIT_INTERRUPTED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from tests.patience import until
from tests.slurm.ssh.login_node import Laptop, free_port
from tests.slurm.toy import finish, said
from tests.terminal import Terminal, check_end_with_client

SERVER = "python -m http.server --bind 127.0.0.1"


class Node:
    """A node that a user has got by `dev`, and the user's ssh."""

    def __init__(self, laptop: Laptop) -> None:
        (laptop.project / "train.py").write_text("print('hello')\n")
        answer = json.loads(laptop("dev", "--on", "big", "resources.grace_seconds=20", "--json"))
        self.laptop, self.host, self.folder = laptop, answer["host"], answer["folder"]
        self.options = ["-F", answer["ssh_config"]]
        self.run = RunDir(laptop.node.runs / answer["run"])

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [program, *self.options, *arguments]
        return subprocess.Popen(command, env=self.laptop.environment, stdin=pipe, stdout=pipe, stderr=pipe)

    def __call__(self, program: str, *arguments: str, content: bytes = b"") -> bytes:
        process = self.start(program, *arguments)
        output, error = process.communicate(content)
        assert process.returncode == 0, error.decode()
        return output


@pytest.fixture
def held(laptop: Laptop) -> Iterator[Node]:
    node = Node(laptop)
    yield node
    if node.run.last_outcome() is None:
        laptop("cancel", node.run.id, code=None)
        finish(node.run)


def test_ssh_sftp_and_a_forwarded_port_reach_the_node_and_end_with_their_client(held: Node, tmp_path: Path) -> None:
    node = held
    here, there = free_port(), free_port()
    program = f'echo "$ROPEWALK_ATTEMPT" "$SLURM_JOB_ID" "$PWD"; python train.py; sleep 4321 & {SERVER} {there}'
    server = node.start("ssh", "-L", f"{here}:127.0.0.1:{there}", node.host, program)
    assert server.stdout is not None
    job = str(node.run.attempt_details(1)["handle"]).removeprefix("slurm:")
    assert [server.stdout.readline().decode() for _ in range(2)] == [f"1 {job} {node.folder}\n", "hello\n"]
    assert Path(node.folder).is_relative_to(node.run.path), "sessions change a copy of their own"
    noise = random.Random(0).randbytes(3 << 20)
    (tmp_path / "noise").write_bytes(noise)
    node("sftp", "-b", "-", node.host, content=f"put {tmp_path}/noise {node.folder}/noise\n".encode())
    assert Path(node.folder, "noise").read_bytes() == noise

    def served() -> bool:
        curl = ["curl", "-sf", f"http://127.0.0.1:{here}/noise"]
        return subprocess.run(curl, capture_output=True, check=False).stdout == noise

    until(served)
    check_end_with_client(str(node.run.path), server.kill, count=1)
    server.communicate()
    assert node.run.last_outcome() is None, "the allocation goes on"
    node.laptop("cancel", node.run.id)
    assert finish(node.run).state is RunState.CANCELLED, said(node.run)


def test_top_at_a_terminal_passes_through_ssh(laptop: Laptop) -> None:
    top = Terminal(command_at_terminal(laptop, "top", "--on", "big"))
    top.read_until("no run is active")
    top.resize(30, 150)
    top.read_until(" " * 149)  # the page fills the screen
    top.type("\x03", end="")  # Ctrl-C
    assert top.end() == EXIT_INTERRUPTED


@pytest.mark.soak(
    "make test has top at a terminal through ssh, a shell of test_shell.py on a node, and sessions of dev through ssh"
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
