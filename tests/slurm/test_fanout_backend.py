"""`preprocess fanout=array --on CLUSTER`: the driver in a Slurm job of its own, which submits the array."""

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.logs import log_files, read_logs
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.slurm.job_lookup import job_id
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.documents import configure, contents, make, some_documents, write_lines
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT, cancel_jobs
from tests.slurm.toy import finish

KEYS: dict[str, Any] = {"unit_mib": 0.02, "shard_mib": 0.05}
ARRAY: dict[str, Any] = {"fanout": "array", "array": {"at_once": 2, "jobs": 4, "minutes": 5}, **KEYS}
OVER = ("COMPLETED", "CANCELLED", "FAILED")

Start = Callable[[], RunDir]

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in/a.jsonl", some_documents(600))


@pytest.fixture
def start(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, slurm_lab: Lab) -> Iterator[Start]:
    """Start the job through the public door; whatever it submitted is cancelled with the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm", "partition": "main"}}))
    started: list[RunDir] = []

    def begin() -> RunDir:
        resources = {"cpus": 1, "grace_seconds": 20}
        started.append(submit("preprocess", configure(source, tmp_path / "out", resources=resources, **ARRAY), "lab"))
        return started[-1]

    yield begin
    for run in started:
        cancel_jobs(f"ropewalk-{run.id}", *(f"{run.id}.array-{attempt}" for attempt in run.attempts()))


def elements(run: RunDir, attempt: int) -> Counter[str]:
    """States of the elements that an attempt's driver submitted."""
    arguments = ["squeue", "--noheader", "--array", "--states=all", f"--name={run.id}.array-{attempt}", "--format=%T"]
    return Counter(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split())


def at_work(run: RunDir, output: Path, attempt: int = 1) -> None:
    """Something is committed, and elements are there."""
    until(lambda: list((output / ".work/units").glob("*.json")) and elements(run, attempt)["RUNNING"], Patience.RUN)


@pytest.mark.soak("make test runs test_a_stop_ends_the_array_and_keeps_what_is_committed without Slurm")
def test_a_requeued_driver_goes_on_and_ends_the_array_that_it_left(start: Start, tmp_path: Path, source: Path) -> None:
    run = start()
    at_work(run, tmp_path / "out")
    subprocess.run(["scontrol", "requeue", job_id(run)], check=True)
    first: Outcome = until(lambda: run.outcome(1), Patience.RUN)
    assert (first.state, first.exit_code) == (RunState.REQUEUED, 85)
    until(lambda: set(elements(run, 1)) <= set(OVER))
    assert finish(run, Patience.RUN).state is RunState.SUCCEEDED, "\n".join(map(str, read_logs(run)))
    make(source, tmp_path / "serial", **KEYS)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert run.attempts() == [1, 2]
    assert set(elements(run, 2)) == {"COMPLETED"}
    prefixes = [prefix for prefix, _ in log_files(run)]
    assert {"1.batch", "1.node-0", "1.rank-0", "2.node-0", "2.rank-0"} <= set(prefixes)
    assert any(prefix.startswith("1.array-0-ingest-") for prefix in prefixes)
    assert any(prefix.startswith("2.array-1-") for prefix in prefixes)


@pytest.mark.soak("make test runs test_a_stop_ends_the_array_and_keeps_what_is_committed without Slurm")
def test_cancelling_the_run_ends_its_array(start: Start, tmp_path: Path) -> None:
    run = start()
    at_work(run, tmp_path / "out")
    load_backend("lab").cancel(run)
    assert finish(run, Patience.RUN).state is RunState.CANCELLED
    assert set(elements(run, 1)) <= set(OVER), "none outlives the outcome"
    assert elements(run, 1)["CANCELLED"]
    assert not (tmp_path / "out/manifest.json").exists()
