"""ssh sessions at a real sshd, without an open port: their variables, their folder, and what their end leaves."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.orchestration.dev.config import DevConfig
from ropewalk.jobs.orchestration.dev.server import SessionServer, socket_name
from tests.patience import until
from tests.slurm.ssh.login_node import need_sshd
from tests.terminal import sleepers

CONNECT = [sys.executable, "-m", "ropewalk.jobs.orchestration.dev.connect"]


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[list[str]]:
    """The ssh command of a client that may log in."""
    need_sshd()
    run, key = f"run-{os.getpid()}", tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SECRET": "two\nlines", "ROPEWALK_RUN": run}
    server = SessionServer(socket_name(run, 1), key.with_suffix(".pub").read_text().strip(), tmp_path, variables)
    proxy = shlex.join(["env", f"ROPEWALK_RUN=/runs/{run}", "ROPEWALK_ATTEMPT=1", *CONNECT])
    options = ["IdentitiesOnly=yes", f"IdentityFile={key}", f"ProxyCommand={proxy}"]
    options += ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    yield ["ssh", "-F", "none", *(word for option in options for word in ("-o", option)), run]
    server.close()
    assert not sleepers({"ROPEWALK_RUN": run}, 4322), "nothing outlives the server"


def test_a_session_has_the_variables_of_the_run_and_ends_with_its_client(ssh: list[str], tmp_path: Path) -> None:
    run = ssh[-1]
    done = subprocess.run([*ssh, 'echo "$SECRET"; pwd; exit 7'], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (f"two\nlines\n{tmp_path}\n", 7), done.stderr
    assert subprocess.run(ssh, input="echo script", capture_output=True, text=True, check=True).stdout == "script\n"
    with subprocess.Popen([*ssh, "trap '' HUP; setsid sleep 4322 & sleep 4321 & sleep 4321"], stdin=subprocess.PIPE) as client:
        until(lambda: len(sleepers({"ROPEWALK_RUN": run}, 4321)) == 2 and sleepers({"ROPEWALK_RUN": run}, 4322))
        client.kill()
    until(lambda: not sleepers({"ROPEWALK_RUN": run}, 4321))
    assert sleepers({"ROPEWALK_RUN": run}, 4322), "what has left the session, as tmux does, stays"


def test_without_sshd_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropewalk.jobs.orchestration.dev.server.SBIN", "")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="install openssh-server there, or in the container's image"):
        SessionServer(socket_name("x", 1), "ssh-ed25519 AAAA", Path(), {})


def test_one_node_is_held() -> None:
    with pytest.raises(ValueError, match="dev holds one node"):
        DevConfig.model_validate({"authorized": "ssh-ed25519 AAAA", "resources": {"nodes": 2}})
