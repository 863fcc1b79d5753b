"""A node that `ropewalk dev` holds, as programs of OpenSSH on the user's machine reach it."""

import random
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.patience import until
from tests.slurm.ssh.login_node import free_port
from tests.terminal import check_end_with_client

SERVER = "python -m http.server --bind 127.0.0.1"


class DevNode:
    """The node of a run, by the answer of `ropewalk dev --json`."""

    def __init__(self, answer: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.host, self.folder = answer["host"], answer["folder"]
        self._options, self._environment = ["-F", answer["ssh_config"]], environment

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ssh or sftp."""
        pipe = subprocess.PIPE
        command = [program, *self._options, *arguments]
        return subprocess.Popen(command, env=self._environment, stdin=pipe, stdout=pipe, stderr=pipe)

    def __call__(self, program: str, *arguments: str, content: bytes = b"") -> bytes:
        """Run ssh or sftp, and return its output."""
        process = self.start(program, *arguments)
        output, error = process.communicate(content)
        assert process.returncode == 0, error.decode()
        return output

    def check_reached_until_killed(self, attempt: int, run: str, folder: Path) -> None:
        """Reach the node by ssh, sftp and a forwarded port, and see that a killed session leaves no process there.

        `run`: the run's directory on the node. The code prints hello.
        """
        here, there = free_port(), free_port()
        program = f'echo "$ROPEWALK_ATTEMPT" "$PWD"; python train.py; sleep 4321 & {SERVER} {there}'
        server = self.start("ssh", "-L", f"{here}:127.0.0.1:{there}", self.host, program)
        assert server.stdout is not None
        lines = "".join(server.stdout.readline().decode() for _ in range(2))
        assert lines == f"{attempt} {self.folder}\nhello\n"
        noise = random.Random(0).randbytes(3 << 20)
        (folder / "noise").write_bytes(noise)
        self("sftp", "-b", "-", self.host, content=f"put {folder}/noise {self.folder}/noise\n".encode())
        assert self("ssh", self.host, "cat noise") == noise

        def served() -> bool:
            curl = ["curl", "-sf", f"http://127.0.0.1:{here}/noise"]
            return subprocess.run(curl, capture_output=True, check=False).stdout == noise

        until(served)
        check_end_with_client(run, server.kill, count=1)
        server.communicate()
