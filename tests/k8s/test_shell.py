"""`ropewalk shell` in a pod of a run."""

from collections.abc import Callable

import pytest

from ropewalk.cluster.backends.base import NodeProgram
from ropewalk.jobs.runs.show.shell import PROGRAM
from tests.k8s.cluster import Cluster
from tests.k8s.toy import KubeToy
from tests.terminal import Terminal, check_end_with_client


@pytest.mark.soak("make test opens shells on this machine, and kills their clients in jobs/orchestration/dev/test_sessions.py")
def test_a_shell_in_a_pod_ends_with_its_client(
    lab: Cluster, start: Callable[..., KubeToy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", lab.path, prepend=":")
    toy = start(steps=10_000)
    toy.reach(1)
    program = NodeProgram(module=PROGRAM, node=0, address=toy.namespace.pod(0)["status"]["podIP"], terminal=True)
    terminal = Terminal(toy.backend.shell_command(toy.run, program))
    terminal.type('echo "attempt $ROPEWALK_ATTEMPT"; trap "" HUP; setsid sleep 4321 & sleep 4321')
    terminal.read_until("attempt 1")
    check_end_with_client(f"/runs/{toy.run.id}", terminal.kill, count=2)
    assert toy.run.last_outcome() is None, "the run goes on"
