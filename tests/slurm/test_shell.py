"""`ropewalk shell` on a node of a Slurm job."""

import sys
from pathlib import Path

import pytest

from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.slurm.lab.cluster import Lab
from tests.slurm.test_command import project, reach, start
from tests.slurm.toy import finish
from tests.terminal import Terminal, check_end_with_client

__all__ = ["project"]
WAIT = """import os, sys, time, ropewalk
ropewalk.log({"waits": 1}, step=1)
while not os.path.exists(os.environ["ROPEWALK_STOP_FLAG"]):
    time.sleep(0.1)
sys.exit(85)
"""


@pytest.mark.soak(
    "two nodes; test_a_shell_in_a_pod_ends_with_its_client has one of a cluster,"
    " test_a_shell_has_the_folder_and_the_variables_of_its_run the command"
)
def test_a_shell_on_the_second_node_ends_with_its_client(slurm_lab: Lab, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "wait.py").write_text(WAIT)
    run = start(project, "wait.py", resources={"nodes": 2, "grace_seconds": 20})
    reach(run, 1)
    ropewalk = [sys.executable, "-m", "ropewalk.jobs.cli"]
    terminal = Terminal([*ropewalk, "shell", run.id, "--node", "1"])
    terminal.type('echo "$(hostname) $(basename "$PWD") attempt $ROPEWALK_ATTEMPT"; trap "" HUP; sleep 4321 & sleep 4321')
    host = terminal.read_until("attempt 1").partition(" work attempt 1")[0].split()[-1]
    agents = read_lines(run.attempt_dir(1) / AGENTS)
    assert [host] == [agent["address"] for agent in agents if agent["node"] == 1]
    check_end_with_client(str(run.path), terminal.kill, count=2)
    assert run.last_outcome() is None, "the run goes on"
    list(cancel_runs([run.id]))
    finish(run)  # the cluster's nodes are idle again
