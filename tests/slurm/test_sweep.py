"""A sweep whose trials are jobs of a real Slurm: a preempted one changes no decision, and a cancelled one leaves no job."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.cancel import cancel_runs
from tests.jobs.sweeping import Swept, sweeps
from tests.patience import Patience, until
from tests.slurm.conftest import MakeLab

pytestmark = [pytest.mark.slow]

Start = Callable[..., Swept]

KEYS: dict[str, Any] = {
    "base": {"steps": 60, "pause": 0.05, "resources": {"grace_seconds": 20}},
    "space": {"optim.lr": {"grid": [0.1, 10.0, 0.3, 0.05]}},
    "search": "grid",
    "max_concurrent": 1,  # so that the order of results is the same each time
    "scheduler": "asha",
    "asha": {"grace_steps": 10},
}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_lab: MakeLab) -> Iterator[Start]:
    make_lab(nodes=2)
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm", "partition": "main", "exclusive": True}}))
    with sweeps(tmp_path) as begin:
        yield begin


def decisions(sweep: Swept) -> list[tuple[str, int | None]]:
    return [(record.state.value, record.stopped_at) for record in sweep.records()]


def queue() -> str:
    return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout


@pytest.mark.soak("two sweeps; make test preempts a run in test_stops.py, and runs a sweep in chaos/test_sweep.py")
def test_a_preempted_trial_resumes_and_changes_no_decision(start: Start) -> None:
    peaceful = start(cluster="local", **KEYS)
    peaceful.finish()
    disturbed = start(cluster="lab", **KEYS)
    until(lambda: max((step for steps in disturbed.steps().values() for step in steps), default=0) >= 25, describe=disturbed.said)
    subprocess.run(["sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true"], check=True)
    assert disturbed.finish()["best_trial"] == peaceful.run.results()["best_trial"]
    first = disturbed.runs()[0]
    assert [first.outcome(number).state for number in first.attempts()] == [RunState.PREEMPTED, RunState.SUCCEEDED]  # type: ignore[union-attr]
    assert disturbed.steps()[first.id] == list(range(1, 61)), "no step is lost, none is done again"
    assert decisions(disturbed) == decisions(peaceful)
    until(lambda: not queue(), Patience.START, queue)


@pytest.mark.soak(
    "a minute of Ray; make test has jobs of a pipeline in pipeline/test_pipeline.py, and a driver that is killed in"
    " chaos/test_sweep.py"
)
def test_the_driver_is_a_job_too_and_a_cancelled_sweep_leaves_none(start: Start) -> None:
    sweep = start(on="lab", base={"steps": 3000, "pause": 0.05}, trials=3, max_concurrent=1)
    until(lambda: any(sweep.steps().values()), describe=sweep.said)
    list(cancel_runs([sweep.run.id]))
    sweep.finish(RunState.CANCELLED)
    assert {record.state.value for record in sweep.records()} == {"CANCELLED"}
    until(lambda: not queue(), Patience.STEP, queue)
