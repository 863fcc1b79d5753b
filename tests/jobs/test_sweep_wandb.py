"""A sweep in W&B: its group, the table of its trials, the best in its summary; nothing lost on kill -9."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BackendError
from cluster.run.directory import RunDir
from cluster.run.files import read_json, write_json
from jobs.sweep.results import read_sweep
from jobs.tracking.wandb_sync import sync_run
from tests.fakes.sweep import make_sweep
from tests.jobs.test_tracking_wandb import catches_sigterm, history, records
from tests.patience import ended, until


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of the person who runs the tests
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = make_sweep(tmp_path / "runs", 5)
    (run.attempt_dir(1) / "outcome.json").rename(tmp_path / "outcome.json")
    return run


def start(run: RunDir) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "jobs.tracking.wandb_sync", str(run.path), "--attempt", "1"])


def tables(run: RunDir) -> list[dict[str, Any]]:
    found = sorted(run.wandb.glob("offline-run-*/files/media/table/**/*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in found]


def trials_of(table: dict[str, Any]) -> dict[int, dict[str, Any]]:
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return {row["trial"]: row for row in rows}


def test_the_table_and_the_summary_outlive_kill_9(sweep: RunDir, tmp_path: Path) -> None:
    path = sweep.path / "trials/0004.json"
    ended = read_json(path) or {}
    write_json(path, {**ended, "state": "PENDING", "runs": []})
    sidecar = start(sweep)
    until((sweep.wandb / "cursor.json").exists)
    sidecar.kill()
    sidecar.wait()
    (opened,) = [record["run"] for record in records(sweep, "run")]
    assert (opened["run_id"], opened["run_group"], opened["job_type"]) == (sweep.id, sweep.id, "sweep")
    assert history(sweep, "sweep/pending") == [1]

    write_json(path, ended)  # the last trial ends, and nobody is there to tell of it
    (tmp_path / "outcome.json").rename(sweep.attempt_dir(1) / "outcome.json")
    for _ in range(2):  # the second time nothing is left to mirror
        with pytest.raises(BackendError, match="2 W&B files wait"):
            sync_run(sweep)
    answers = read_sweep(sweep)
    best = answers.best
    assert best is not None
    assert history(sweep, f"sweep/best {answers.metric}") == [best.metric, best.metric]
    assert history(sweep, "sweep/steps_saved")[-1] == answers.saved
    last = trials_of(tables(sweep)[-1])
    assert {number: row["state"] for number, row in last.items()} == {trial.trial: trial.state for trial in answers.trials}
    assert last[best.trial]["optim.lr"] == pytest.approx(best.parameters["optim.lr"])
    summaries = json.dumps(records(sweep, "summary"))
    assert "best/parameters/optim.lr" in summaries


def test_the_end_of_a_sidecar_tells_the_last_state(sweep: RunDir) -> None:
    sidecar = start(sweep)
    until(lambda: catches_sigterm(sidecar.pid) and bool(tables(sweep)))
    path = sweep.path / "trials/0004.json"
    write_json(path, {**(read_json(path) or {}), "state": "CANCELLED"})  # sooner than another table is due
    write_json(sweep.attempt_dir(1) / "nodes/node-0.json", {"exit_code": 0})
    sidecar.send_signal(signal.SIGTERM)
    assert ended(sidecar) == 0
    assert trials_of(tables(sweep)[-1])[4]["state"] == "CANCELLED"
    assert len(tables(sweep)) == 2
