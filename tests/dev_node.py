"""A node that `ropewalk dev` holds, as programs of OpenSSH on the user's machine reach it."""

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.slurm.ssh.login_node import free_port
from tests.terminal import check_end_with_client

SERVER = "python -m http.server --bind 127.0.0.1"
# prints the status of a request without a token, and what a kernel says of 1+1
ASK_JUPYTER = """
import json, sys, urllib.error, urllib.request, uuid, websocket
base, token = sys.argv[1:]
try:
    urllib.request.urlopen(base + "/api/kernels")
except urllib.error.HTTPError as error:
    print(error.code)
request = urllib.request.Request(base + "/api/kernels", b"{}", {"Authorization": "token " + token})
kernel = json.load(urllib.request.urlopen(request))["id"]
address = base.replace("http", "ws", 1) + "/api/kernels/" + kernel + "/channels?token=" + token
kernel = websocket.create_connection(address, timeout=120)
header = {"msg_id": uuid.uuid4().hex, "session": "one", "username": "", "version": "5.3", "msg_type": "execute_request"}
content = {"code": "1+1", "silent": False}
kernel.send(json.dumps({"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}))
while (message := json.loads(kernel.recv()))["msg_type"] != "execute_result":
    pass
print(message["content"]["data"]["text/plain"])
"""


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

    def check_jupyter(self, packages: Path) -> None:
        """Start a Jupyter server as a user does, and have a kernel compute through a forwarded port, with the server's token."""
        here, there = free_port(), free_port()
        program = f'PYTHONPATH="{packages}:$PYTHONPATH" exec python -m jupyter_server --no-browser --allow-root --port {there}'
        server = self.start("ssh", "-L", f"{here}:localhost:{there}", self.host, program)
        assert server.stderr is not None
        token = next(line.partition(b"token=")[2] for line in server.stderr if b"token=" in line).decode().strip()
        command = [sys.executable, "-c", ASK_JUPYTER, f"http://localhost:{here}", token]
        answer = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, check=False)
        assert answer.stdout.split() == [b"403", b"2"], answer.stderr.decode()
        server.kill()
        server.communicate()


def jupyter_packages() -> Path:
    """Return a folder with Jupyter's server and kernel, which are installed once a checkout; skip the test if that fails."""
    folder = Path(__file__).parents[1] / "build/jupyter"
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "-qq", "--target", str(part), "jupyter-server", "ipykernel"]
        if subprocess.run(command, check=False).returncode:
            pytest.skip("needs the packages jupyter-server and ipykernel: pip cannot fetch them here")
        part.rename(folder)
    return folder
