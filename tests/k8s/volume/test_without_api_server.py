"""The API server is away for half a minute: what runs goes on, what is submitted is made once, and every command says what it
cannot see; from a laptop that mounts the volume, and from one that does not.

Without an API server for a while all nodes need time to settle, so this module is the last of the folder by its name.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.k8s.api.client import ApiAwayError
from ropewalk.k8s.backend import K8sBackend
from tests.fakes.searched import make_plugin
from tests.k8s.cluster import ROOT, Cluster, Namespace
from tests.patience import HANG_SECONDS, until
from tests.slurm.toy import finish

pytestmark = [pytest.mark.slow]

AWAY_SECONDS = 30.0
STEPS = 600  # which take a minute
LONG, MIDDLE, SHORT = [f"steps={STEPS}", "pause=0.1"], ["steps=140", "pause=0.1"], ["steps=5"]
SMALL = ["resources.cpus=1", "resources.grace_seconds=10"]

Say = Callable[..., "Said"]


class Said:
    """A command under way, and what it said."""

    def __init__(self, folder: Path, number: int, arguments: list[str]) -> None:
        self.out, self.err = folder / f"{number}.out", folder / f"{number}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ropewalk.jobs.cli", *arguments], cwd=folder, stdout=out, stderr=err
            )

    def end(self) -> str:
        """Wait for its success; its output."""
        try:
            code = self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # it says where it was
            code = self.process.wait(10)
        assert code == 0, f"{self.process.args}: {self.out.read_text()}\n{self.err.read_text()}"
        return self.out.read_text()


@pytest.fixture
def say(namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Say]:
    """`ropewalk WORDS`, on a laptop that knows the test's namespace as `near`, and without its volume as `far`."""
    plugin = make_plugin(tmp_path / "plugin")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{plugin}")
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    options: dict[str, Any] = {"backend": "k8s", **namespace.options()}
    options["environment"] |= {"WANDB_MODE": "disabled"}
    far = {key: value for key, value in options.items() if key != "runs"}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"near": options, "far": far}))
    started: list[Said] = []

    def begin(*arguments: str) -> Said:
        started.append(Said(tmp_path, len(started), list(arguments)))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.wait()


def steps_said(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"rank-0 \| step (\d+)$", text, re.M)]


def newest(root: Path, but: list[str]) -> RunDir | None:
    """A run that was not there before."""
    return next((run for run in RunDir.all(root) if run.id not in but), None)


@pytest.mark.soak("restarts an API server; make test submits to one that does not answer, and ends a run by its directory alone")
def test_a_run_runs_on_and_ps_says_what_it_cannot_see(lab: Cluster, namespace: Namespace, say: Say) -> None:
    name = say("submit", "searched", *MIDDLE, *SMALL, "--on", "near").end().split()[-1]
    run = RunDir(namespace.runs / name)
    until(run.read_metrics)
    lab.stop_api()
    before = run.read_metrics()[-1]["step"]
    (row,) = json.loads(say("ps", "--json").end())
    assert row["state"] == "RUNNING"
    assert "cannot be reached" in row["reason"]
    until(lambda: run.read_metrics()[-1]["step"] > before)
    lab.mend()
    assert finish(run).state is RunState.SUCCEEDED
    assert run.attempts() == [1]


@pytest.mark.soak(
    "half a minute without API server; make test submits to one that does not answer, and ends a run by its directory alone"
)
def test_nothing_is_lost_nothing_made_twice_and_all_say_what_they_cannot_see(
    lab: Cluster, namespace: Namespace, say: Say, tmp_path: Path
) -> None:
    followed = say("run", "searched", *LONG, *SMALL, "--on", "near", "--json")
    far = RunDir(tmp_path / "runs" / say("submit", "searched", *LONG, *SMALL, "--on", "far").end().strip())
    near = until(lambda: newest(namespace.runs, [far.id]))
    there = RunDir(namespace.runs / far.id)  # of which this laptop has a copy
    until(lambda: near.read_metrics() and there.read_metrics())
    logs = [say("logs", "-f", run.id) for run in (near, far)]
    until(lambda: all(steps_said(each.out.read_text()) for each in logs))

    lab.stop_api()
    since = time.monotonic()
    before = [run.read_metrics()[-1]["step"] for run in (near, there)]
    late = [say("submit", "searched", *SHORT, *SMALL, "--on", on) for on in ("near", "far")]
    rows = {row["run"]: row for row in json.loads(say("ps", "--json").end())}
    for run in (near, far):
        assert rows[run.id]["state"] == "RUNNING"
        assert "cannot be reached" in rows[run.id]["reason"]
    shown = say("show", far.id, "--json")
    assert json.loads(shown.end())["metrics"]["step"] >= 1
    assert f"this machine's copy of {far.id} may be outdated" in shown.err.read_text()
    until(lambda: time.monotonic() - since > AWAY_SECONDS)
    assert [each.process.poll() for each in [followed, *logs, *late]] == [None] * 5, "they wait for it"
    after = [run.read_metrics()[-1]["step"] for run in (near, there)]
    assert all(new > old + 100 for old, new in zip(before, after, strict=True)), "runs do not need it"
    lab.mend()

    submitted = [each.end().strip() for each in late]
    for each in late:
        assert "retrying for up to 120 s" in each.err.read_text()
    assert json.loads(followed.end().splitlines()[-1])["state"] == "SUCCEEDED"
    assert "cannot be reached" in followed.err.read_text()
    assert [steps_said(each.end()) for each in logs] == [list(range(1, STEPS + 1))] * 2, "no line is lost or told twice"
    assert f"this machine's copy of {far.id} may be outdated" in logs[1].err.read_text()
    runs = [near, there, *(RunDir(namespace.runs / name) for name in submitted)]
    for run in runs:
        assert finish(run).state is RunState.SUCCEEDED
        assert run.attempts() == [1]
    created = namespace.items("Job", "ropewalk/role=run")
    assert sorted(job["metadata"]["name"] for job in created) == sorted(f"{run.id}-1" for run in runs)


def test_a_run_is_told_to_end_by_its_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The directory carries the cancel if nobody listens; it is an error if this machine does not see the directory."""
    lost = {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}], "users": [{"name": "u", "user": {}}]}
    lost |= {"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}], "current-context": "x"}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(lost))
    run = RunDir.create("toy", {"config": {}, "resources": {}}, tmp_path)
    run.begin_attempt(name=f"{run.id}-1", opened_by="submission")
    for runs in (str(tmp_path), None):
        backend = K8sBackend(Profile(name="x", backend="k8s", options={"kubeconfig": str(tmp_path / "kubeconfig"), "runs": runs}))
        with closing(backend.kube), nullcontext() if runs else pytest.raises(ApiAwayError, match="cannot be reached"):
            backend.cancel(run)
    assert run.cancel_requested
    assert run.last_outcome() is None
    assert f"{run.id} finds the request in its directory" in caplog.text
