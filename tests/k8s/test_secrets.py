"""Secrets of a program in pods: keys of a Secret, files that the agent alone reads, and nothing of them anywhere else."""

from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RUNS_VARIABLE
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.submit import submit
from tests import planted
from tests.k8s.cluster import Namespace
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that end with a process
@pytest.mark.soak("make test plants secrets on this machine, on Slurm and through ssh")
def test_planted_secrets_are_in_the_program_alone(namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = {"backend": "k8s", **namespace.options()}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    runs = Path(profile["runs"])
    for name, value in {RUNS_VARIABLE: runs, "PYTHONPATH": ROOT, "ROPEWALK_CLUSTERS": tmp_path / "clusters.yaml"}.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"team": profile}))
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text(planted.PROGRAM)
    values = {"command": [namespace.cluster.python, "train.py"], "directory": str(project), "secrets": list(planted.SECRETS)}
    config = load_config(CommandConfig, {**values, "resources": {"cpus": 1, "grace_seconds": 20}, "retries": {"bugs": 0}})
    with pytest.raises(ConfigError, match=r"are not set on cluster 'team'; type `ropewalk secret set PLANTED_KEY --on team`"):
        submit("command", config, "team")
    store = load_backend("team").secret_store()
    assert store.names() == []
    for name, value in {**planted.SECRETS, "SPARE": "planted-and-removed"}.items():
        store.set(name, "an earlier value")
        store.set(name, value)
    assert store.remove("SPARE")
    assert not store.remove("SPARE")
    assert store.names() == sorted(planted.SECRETS)
    run = submit("command", config, "team")
    planted.look_while_running(run, ranks=1)
    until(lambda: final_outcome(run) is not None, Patience.RUN)
    outcome = final_outcome(run)
    assert outcome is not None
    assert outcome.state is RunState.FAILED
    assert f"RuntimeError: ***{planted.NAME}*** is refused" in outcome.cause
    planted.check_log((run.log_dir(1) / "rank-0.log").read_text())
    assert planted.found([tmp_path, runs]) == []
    for kind in ("Job", "Pod", "ConfigMap", "Event"):
        described = str(namespace.items(kind))
        assert not [needle for needle in planted.NEEDLES if needle.decode() in described], kind
