"""A sweep in W&B: its group, and its trials and the best of them in its summary; nothing lost on kill -9."""

import signal
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.orchestration.sweep.report.html_report import write_readable
from ropewalk.jobs.orchestration.sweep.report.results import read_sweep
from ropewalk.jobs.results.readable import pictures, read_table
from ropewalk.jobs.runs.mirror.mirror import send_rest
from tests.fakes.sweep import make_sweep
from tests.fakes.wandb_server import WandbServer
from tests.forked import Forked
from tests.jobs.runs.mirror.offline import records
from tests.patience import Patience, ended, until


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of the person who runs the tests
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = make_sweep(tmp_path / "runs", 5)
    (run.attempt_dir(1) / "outcome.json").rename(tmp_path / "outcome.json")
    return run


def start(run: RunDir) -> Any:
    return Forked(module_command("ropewalk.jobs.runs.mirror.sidecar", str(run.path), "--attempt", "1"))


def summary(run: RunDir) -> dict[str, Any]:
    """Merge the summaries of all W&B files of a run, the newest last."""
    return {key: value for record in records(run, "summary") for key, value in record["summary"].get("update", {}).items()}


@pytest.mark.soak(
    "two starts of W&B; test_every_line_once_though_sidecar_and_relay_are_killed kills a sidecar,"
    " test_pictures_and_a_page_that_needs_nothing_else has what a sweep shows"
)
def test_the_summary_outlives_kill_9(
    wandb_server: WandbServer, sweep: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep.path / "trials/0004.json"
    ended = read_json(path) or {}
    write_json(path, {**ended, "state": "PENDING", "runs": []})
    sidecar = start(sweep)
    until((sweep.wandb / "offline-told.json").exists, Patience.START)
    until(lambda: summary(sweep), Patience.START)
    sidecar.kill()
    sidecar.wait()
    (opened,) = [record["run"] for record in records(sweep, "run")]
    assert (opened["run_id"], opened["run_group"], opened["job_type"]) == (sweep.id, sweep.id, "sweep")
    assert summary(sweep)["sweep/pending"] == 1

    write_json(path, ended)  # the last trial ends, and nobody is there to tell of it
    (tmp_path / "outcome.json").rename(sweep.attempt_dir(1) / "outcome.json")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    send_rest(sweep)
    output = wandb_server.run(sweep.id).summary
    results = read_sweep(sweep)
    write_readable(results)
    assert {path.name for path in pictures(sweep.path)} == {"history.png", "parallel-coordinates.png"}
    table = read_table(sweep.path / "tables/trials.json")
    assert table is not None
    assert len(table.rows) == len(results.trials)
    assert "optim.lr" in table.columns
    best = results.best
    assert best is not None
    assert (output["best/metric"], output["sweep/steps_saved"]) == (best.metric, results.saved)
    assert output["best/parameters/optim.lr"] == pytest.approx(best.parameters["optim.lr"])


@pytest.mark.soak("another sidecar; make test runs test_every_line_once_though_sidecar_and_relay_are_killed")
def test_the_end_of_a_sidecar_tells_the_last_state(sweep: RunDir) -> None:
    sidecar = start(sweep)
    until((sweep.wandb / "offline-told.json").exists, Patience.START)
    path = sweep.path / "trials/0004.json"
    write_json(path, {**(read_json(path) or {}), "state": "CANCELLED"})  # sooner than the summary is looked at again
    write_json(sweep.attempt_dir(1) / "nodes/node-0.json", {"exit_code": 0})
    sidecar.send_signal(signal.SIGTERM)
    assert ended(sidecar) == 0
    assert summary(sweep)["sweep/cancelled"] == 1
