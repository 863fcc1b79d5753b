"""A login node that asks for a one-time code: typed once at a terminal, it opens a connection that further commands share."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.lab.cluster import Lab
from tests.slurm.conftest import end_jobs, short_folder
from tests.slurm.ssh.login_node import Laptop, LoginNode, login_node
from tests.slurm.ssh.test_dev import command_at_terminal
from tests.terminal import Terminal

CODES = ("314159", "271828")


@pytest.fixture
def node(slurm_lab: Lab) -> Iterator[LoginNode]:
    """A login node that takes each of two codes once."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and mount namespaces: sshd asks for codes through PAM")
    folder = short_folder()
    with login_node(folder, {"SLURM_CONF": slurm_lab.env["SLURM_CONF"], "WANDB_MODE": "disabled"}, CODES) as started_node:
        started_node.write_config(started_node.port, key=False, shared=True)
        yield started_node
        close_shared(started_node)
    shutil.rmtree(folder, ignore_errors=True)


def close_shared(node: LoginNode) -> None:
    command = ["ssh", "-F", str(node.folder / "ssh_config"), "-O", "exit", "login.big"]
    subprocess.run(command, capture_output=True, check=False)


def check_refusal(laptop: Laptop) -> None:
    laptop("ps", "--on", "big", code=1)
    assert "without a terminal ssh cannot ask for a password or code: use a key" in laptop.err
    assert "ControlMaster" in laptop.err
    assert laptop.err.count("\n") == 1


@pytest.mark.soak(
    "a login node of its own; test_a_second_command_takes_three_round_trips shares a connection, and"
    " test_without_a_key_and_a_terminal_the_remedy_is_named is refused"
)
def test_a_code_is_typed_once(node: LoginNode, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop", node, sbatch={"hold": True})
    check_refusal(laptop)
    terminal = Terminal(command_at_terminal(laptop, "ps", "--all", "--on", "big"))
    terminal.read_until("assword: ")  # as PAM calls it
    terminal.type(CODES[0])
    assert terminal.end() == 0, terminal.output
    assert node.codes.read_text().split() == [CODES[1]]
    run = laptop("submit", "command", "launch=once", "--on", "big", "--", "echo", "hello").split()[-1]
    end_jobs(f"ropewalk-{run}")
    assert RunDir(node.runs / run).attempts() == [1]
    assert node.codes.read_text().split() == [CODES[1]], "the others shared its connection"
    close_shared(node)
    check_refusal(laptop)
