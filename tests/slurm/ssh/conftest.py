"""A login node of the session's Slurm lab, and a laptop that reaches it through ssh."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.slurm.lab.cluster import Lab
from tests.slurm.conftest import short_folder
from tests.slurm.ssh.login_node import Laptop, LoginNode, login_node


@pytest.fixture(scope="package")
def node(slurm_lab: Lab) -> Iterator[LoginNode]:
    """A login node of the lab."""
    folder = short_folder()
    with login_node(folder, {"SLURM_CONF": slurm_lab.env["SLURM_CONF"], "WANDB_MODE": "disabled"}) as started_node:
        yield started_node
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def laptop(node: LoginNode, tmp_path: Path) -> Laptop:
    """A user's machine, whose profile `big` has a host."""
    node.write_config(node.port)
    return Laptop(tmp_path / "laptop", node)
