"""A secret that is set on a laptop is stored in the home on the login node, and nowhere else."""

import subprocess

from tests import planted
from tests.slurm.ssh.login_node import Laptop


def test_a_secret_travels_over_standard_input(laptop: Laptop) -> None:
    value = planted.SECRETS[planted.LINES_NAME]
    done = subprocess.run(
        [*laptop.command, "secret", "set", planted.LINES_NAME, "--on", "big"],
        cwd=laptop.project,
        env=laptop.environment,
        input=f"{value}\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stored = laptop.node.home / ".config/ropewalk/secrets/big" / planted.LINES_NAME
    assert done.stdout == f"{planted.LINES_NAME} is set in login.big:{stored.parent}\n"
    assert stored.read_text() == value
    assert stored.stat().st_mode & 0o777 == 0o600
    assert laptop("secret", "list", "--on", "big") == f"{planted.LINES_NAME}\n"
    assert planted.found([laptop.folder, laptop.node.folder], stored.parent) == []
    laptop("secret", "remove", planted.LINES_NAME, "--on", "big")
    assert not stored.exists()
