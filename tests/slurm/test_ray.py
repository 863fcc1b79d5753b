"""Ray over an allocation: the same bytes, beside another run's Ray, stopped, killed and refused."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.slurm.job_lookup import job_id
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.documents import configure, contents, make, some_documents, write_lines
from tests.patience import Patience, until
from tests.processes import words_of
from tests.slurm.conftest import ROOT, end_jobs
from tests.slurm.toy import finish, said

KEYS: dict[str, Any] = {"unit_mib": 0.02, "shard_mib": 0.05}
RAY = ("raylet", "gcs_server", "ray::", "ropewalk.cluster.engines.ray")

Start = Callable[..., RunDir]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone_with_ray")]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_lab: Lab) -> Iterator[Start]:
    """Start runs of preprocess on the same two nodes of the session's cluster; their jobs are cancelled with the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    started: list[RunDir] = []

    def begin(output: str, environment: dict[str, str] | None = None, documents: int = 400, cpus: int = 2, **keys: Any) -> RunDir:
        profile = {"backend": "slurm", "partition": "main", "sbatch": {"nodelist": ",".join(slurm_lab.nodes[:2])}}
        clusters = {"lab": {**profile, "environment": {"WANDB_MODE": "disabled", **(environment or {})}}}
        (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(clusters))
        source = write_lines(tmp_path / f"in/{documents}.jsonl", some_documents(documents))
        resources = {"nodes": 2, "cpus": cpus, "grace_seconds": 20}
        config = configure(source, tmp_path / output, **{**KEYS, "resources": resources, **keys})
        started.append(submit("preprocess", config, "lab"))
        return started[-1]

    yield begin
    for run in started:
        end_jobs(f"ropewalk-{run.id}")
        until(lambda run=run: not processes_of(run.path))  # type: ignore[misc]


def rays() -> dict[int, str]:
    """All processes of Ray on this machine, by pid."""
    results = {}
    for process in psutil.process_iter(["cmdline", "status", "ppid"]):
        command = " ".join(process.info["cmdline"] or [])
        if any(word in command for word in RAY):
            results[process.pid] = f"{process.info['ppid']} {process.info['status']} {command[:150]}"
    return results


def none_left(before: dict[int, str]) -> None:
    try:
        until(lambda: rays().keys() <= before.keys())
    except AssertionError:
        raise AssertionError("\n".join(f"{pid}: {command}" for pid, command in rays().items())) from None


def committed(output: Path) -> int:
    return len(list((output / ".work/units").glob("*.json")))


@pytest.mark.soak("make test runs test_any_number_of_actors_gives_the_same_bytes")
def test_two_runs_on_the_same_nodes_give_the_same_bytes(start: Start, tmp_path: Path) -> None:
    before = rays()
    runs = [start("one"), start("two", actors=3)]
    make(tmp_path / "in/400.jsonl", tmp_path / "serial", **KEYS)
    for run, output in zip(runs, ("one", "two"), strict=True):
        assert finish(run, Patience.RUN).state is RunState.SUCCEEDED, said(run)
        assert contents(tmp_path / output) == contents(tmp_path / "serial")
        assert {"ray-0.log", "ray-1.log"} <= {path.name for path in run.log_dir(1).iterdir()}
    started, ended = zip(*((o.started, o.ended) for o in map(RunDir.last_outcome, runs) if o), strict=True)
    assert max(started) < min(ended), "both were there at the same time"
    none_left(before)


@pytest.mark.soak("make test runs test_a_ray_that_does_not_start_in_time_is_no_bug")
def test_a_ray_that_does_not_start_fails_the_run_with_its_words(start: Start, tmp_path: Path) -> None:
    run = start("out", {"RAY_OVERRIDE_RESOURCES": "plenty"}, retries={"bugs": 0})
    outcome = finish(run, Patience.RUN)
    assert outcome.state is RunState.FAILED
    assert "the start of Ray on node" in outcome.cause
    assert "JSONDecodeError" in outcome.cause, "in its own words"


@pytest.mark.soak(
    "Ray on two nodes, while no other test starts one; test_any_number_of_actors_gives_the_same_bytes has actors,"
    " test_a_stop_ends_the_array_and_keeps_what_is_committed a stop, chaos/test_sweep.py the Ray of a run"
)
@pytest.mark.parametrize(
    ("arguments", "to_the_end"),
    [
        pytest.param(["--batch", "--signal=USR2"], False, id="USR2"),
        pytest.param(["--signal=TERM"], True, id="TERM to all"),
    ],
)
def test_a_stop_keeps_what_is_committed_and_leaves_no_ray(
    start: Start, tmp_path: Path, arguments: list[str], to_the_end: bool
) -> None:
    before = rays()
    run = start("out", documents=1000, cpus=1)
    until(lambda: committed(tmp_path / "out") >= 2, Patience.RUN)
    subprocess.run(["scancel", *arguments, job_id(run)], check=True)
    outcome = until(lambda: run.outcome(1), Patience.RUN)
    assert (outcome.state, outcome.exit_code) == (RunState.REQUEUED, 85), (outcome, said(run))
    files = committed(tmp_path / "out")  # before the next attempt ends, and takes it away
    assert files >= 2
    if to_the_end:
        none_left(before)
        until(lambda: run.attempts() == [1, 2], Patience.STEP)
        assert finish(run, Patience.RUN).state is RunState.SUCCEEDED, said(run)
    else:
        end_jobs(f"ropewalk-{run.id}")  # before its next attempt starts Ray
    none_left(before)


@pytest.mark.soak("make test checks that a killed supervisor and agent leave nothing in cluster/test_scratch.py")
def test_a_killed_agent_leaves_no_ray(start: Start, tmp_path: Path) -> None:
    before = rays()
    run = start("out", documents=4000, retries={"disturbances": 0})
    until(lambda: committed(tmp_path / "out") >= 2, Patience.RUN)
    results = {process.pid: words_of(process) for process in processes_of(run.path)}
    agents = [pid for pid, command in results.items() if "ropewalk.cluster.agent" in command and "srun" not in command[0]]
    for agent in agents:
        with suppress(ProcessLookupError):  # one may end with the other
            os.kill(agent, signal.SIGKILL)
    outcome = until(lambda: run.outcome(1), Patience.RUN)
    assert "killed by signal 9" in outcome.cause
    none_left(before)
