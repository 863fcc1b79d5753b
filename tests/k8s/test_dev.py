"""`ropewalk dev` in a pod that is preempted, with what people use: ssh, sftp, ports, Jupyter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from tests.dev_node import DevNode, jupyter_packages
from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.queueing import drop_queue, make_queue, urgent
from tests.patience import Patience, until
from tests.slurm.ssh.login_node import ROOT, need_sshd
from tests.slurm.toy import finish, said


@pytest.mark.soak("a preemption; make test has shells in test_shell.py of jobs/runs, and sessions at an sshd in test_sessions.py")
def test_sessions_reach_the_pod_and_its_successor_after_a_preemption(lab: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    need_sshd()
    queue = {"queue": make_queue(namespace, 4), "queue_priority": f"{namespace.name}-low"}
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text("print('hello')\n")
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"team": {"backend": "k8s", **namespace.options(**queue)}}))
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{lab.path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "ROPEWALK_CLUSTERS": str(tmp_path / "clusters.yaml"),
    }

    def ropewalk(*arguments: str) -> Any:
        command = [sys.executable, "-m", "ropewalk.jobs.cli", *arguments, "--json"]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + "".join(map(said, RunDir.all(namespace.runs)))
        return json.loads(done.stdout.splitlines()[-1])

    answer = ropewalk("dev", "--on", "team", "resources.grace_seconds=20", "resources.cpus=1")
    run, node = RunDir(namespace.runs / answer["run"]), DevNode(answer, environment)
    node.check_reached_until_killed(1, f"/runs/{run.id}", tmp_path)
    node.check_jupyter(jupyter_packages())
    assert ropewalk("show", str(run.path))["state"] == "RUNNING"
    urgent(namespace, "urgent", cpus=4)
    until(lambda: run.outcome(1), Patience.RUN)
    namespace.kubectl("delete", "job", "urgent", "--wait=false")
    assert node("ssh", node.host, 'echo "$ROPEWALK_ATTEMPT"; ls').decode() == "2\nnoise\ntrain.py\n", said(run)
    ropewalk("cancel", str(run.path))
    assert finish(run).state is RunState.CANCELLED, said(run)
    drop_queue(namespace)
