"""The relay, with wandb-core itself and a server that records: every line once, whatever is killed or away."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ropewalk.cluster.errors import EXIT_FAILED
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.runs.mirror.mirror import is_complete, send_rest
from ropewalk.jobs.runs.mirror.relay import Relay
from tests.fakes.wandb_server import ServedRun, WandbServer
from tests.jobs.runs.mirror.processes import Started, relay, sidecar
from tests.patience import Patience, ended, until


def make_run(root: Path, name: str, **config: object) -> RunDir:
    run = RunDir.create(name, {"job": "pretrain", "config": {"name": name, **config}, "cluster": "local", "code": {}}, root)
    run.begin_attempt(handle="local:1")
    return run


def log_steps(run: RunDir, steps: range) -> None:
    metrics = MetricLog(JobContext(run=run, attempt=run.attempts()[-1]))
    for step in steps:
        metrics.log(step, {"train/loss": 1 / step, **({"validation/loss": 2 / step} if step % 5 == 0 else {})})


def end(run: RunDir, state: RunState = RunState.SUCCEEDED, code: int = 0, cause: str = "done") -> None:
    run.write_outcome(run.attempts()[-1], Outcome(state=state, exit_code=code, cause=cause, ended=time.time()))


def steps(run: ServedRun) -> list[int]:
    return [line["train/step"] for line in run.history if "train/loss" in line]


IMPATIENT = (
    "import ropewalk.jobs.runs.mirror.relay as relay; relay.SLOW_SECONDS = relay.AWAY_SECONDS = 0.5; "
    "from ropewalk.jobs.cli.main import main; main()"
)


def start_relay() -> subprocess.Popen[bytes]:
    """Start `ropewalk sync --follow` with shorter intervals."""
    return subprocess.Popen([sys.executable, "-c", IMPATIENT, "sync", "--follow"])


def test_every_line_once_though_sidecar_and_relay_are_killed(wandb_server: WandbServer, tmp_path: Path) -> None:
    """Three attempts of a run: one mirrored by a sidecar, one by a relay, each killed with -9 in the middle."""
    run = make_run(tmp_path / "runs", "often")
    beside = Started(sidecar, run.path, 1)
    log_steps(run, range(1, 31))
    until(lambda: len(wandb_server.run(run.id).lines) > 10, Patience.START)
    beside.kill()
    watching = Started(relay, run.path.parent)
    run.begin_attempt()
    log_steps(run, range(31, 61))
    until(lambda: len(wandb_server.run(run.id).lines) > 40, Patience.START)
    watching.kill()
    run.begin_attempt()
    log_steps(run, range(61, 91))
    end(run)
    assert send_rest(run) > 0
    assert is_complete(run)
    output = wandb_server.run(run.id)
    assert steps(output) == list(range(1, 91))
    assert output.rewritten == 0
    assert output.exit_code == 0
    assert list(wandb_server.runs) == [run.id]
    assert output.summary["validation/loss"] == {"min": pytest.approx(2 / 90), "last": pytest.approx(2 / 90)}


@pytest.mark.soak("wandb-core waits long before it retries; test_sidecar.py covers a server that does not answer")
def test_a_server_that_is_away_is_waited_for(wandb_server: WandbServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "patient")
    log_steps(run, range(1, 31))
    wandb_server.failing = 500
    end(run)
    watching = start_relay()
    until(lambda answer=wandb_server.requests: wandb_server.requests > answer + 2, Patience.START)
    wandb_server.failing = 0
    until(lambda: is_complete(run), Patience.START)
    watching.send_signal(signal.SIGINT)
    assert ended(watching) == 0
    assert steps(wandb_server.run(run.id)) == list(range(1, 31))


def test_runs_that_cannot_be_read_stop_no_other_and_are_said_once(wandb_server: WandbServer, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    broken, good = make_run(root, "broken"), make_run(root, "good")
    (broken.path / "run.yaml").write_text("job: [")
    for run in (broken, good):
        log_steps(run, range(1, 6))
        end(run)
    messages: list[str] = []
    watching = Relay([root], messages.append)
    for _ in range(3):
        watching.look()
        for follower in watching._followers.values():
            follower.next_slow = 0.0
    assert steps(wandb_server.run(good.id)) == [1, 2, 3, 4, 5]
    assert sorted(line.split(":")[0] for line in messages) == sorted([broken.id, good.id])


def test_a_run_that_was_over_is_resumed_and_followed_on(wandb_server: WandbServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "again")
    watching = Relay([tmp_path / "runs"], lambda arguments: None)

    def look() -> None:
        watching._next_scan = 0.0
        for follower in watching._followers.values():
            follower.next_slow = 0.0
        watching.look()

    log_steps(run, range(1, 4))
    end(run, RunState.FAILED, EXIT_FAILED, "no")
    look()
    assert is_complete(run)
    assert watching.open_runs == 0
    run.begin_attempt()
    log_steps(run, range(4, 7))
    look()
    assert watching.open_runs == 1
    end(run)
    look()
    assert steps(wandb_server.run(run.id)) == [1, 2, 3, 4, 5, 6]


def test_a_missing_key_is_said_once(wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    messages: list[str] = []
    watching = Relay([tmp_path / "runs"], messages.append)
    for _ in range(3):
        watching._next_server = 0.0
        assert watching.look() == 0
    assert len(messages) == 1
    assert messages[0].startswith("nothing is sent to W&B: there is no W&B key: run `wandb login`")


def test_what_a_run_reads_and_makes_joins_one_graph(wandb_server: WandbServer, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    data = tmp_path / "data"
    data.mkdir()
    tokenizer = {"name": "t", "hash": "xxh3:0123456789abcdef", "vocabulary": 8, "end_of_document": 0, "version": "1"}
    (data / "manifest.json").write_text(json.dumps({"documents": 3, "tokenizer": tokenizer}))
    new_run = make_run(root, "prep", output=str(data))
    trained = make_run(root, "train", data=str(data))
    folder = trained.checkpoints / "step-00000010"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    write_json(trained.model_record, {"tokenizer": tokenizer})
    log_steps(trained, range(1, 11))
    exported = tmp_path / "exported"
    exported.mkdir()
    component = {"name": trained.id, "version": "step-10"}
    (exported / "ml-bom.json").write_text(json.dumps({"metadata": {"component": component}}))
    served = make_run(root, "serve", model="production")
    routes = {"versions": {"m@1": {"model": f"{trained.id}@10", "replicas": []}, "m@2": {"model": str(exported), "replicas": []}}}
    (served.path / "serving").mkdir()
    write_json(served.path / "serving/routes.json", routes)
    judged = make_run(root, "judge", model=trained.id, data=str(data))
    write_json(judged.attempt_dir(1) / "result.json", {"step": 10, "scores": {"boolq": {"accuracy": {"value": 0.5}}}})
    for run in (served, judged, trained, new_run):  # in any order
        end(run)
        send_rest(run)
        assert send_rest(run) == 0
    data_set, text = sorted(wandb_server.run(new_run.id).artifacts_made)
    assert data_set.startswith("data-")
    assert text.startswith("tokenizer-456789abcdef")
    assert sorted(wandb_server.run(trained.id).used) == [data_set, text]
    (checkpoint,) = wandb_server.run(trained.id).artifacts_made
    assert sorted(wandb_server.run(judged.id).used) == sorted([data_set, checkpoint])
    assert [name.split(":")[0] for name in wandb_server.run(judged.id).artifacts_made] == [f"{judged.id}-scores"]
    assert {"latest", "best", "step-10"} <= set(wandb_server.artifacts[checkpoint]["aliases"])
    assert wandb_server.run(served.id).used == [checkpoint], "by what it serves, also out of an exported directory"
    assert len(wandb_server.artifacts) == 4, "no node twice"


@pytest.mark.parametrize("wanted", ["none", "failures", "all"])
def test_alerts_are_told_once_with_the_words_of_why(wandb_server: WandbServer, tmp_path: Path, wanted: str) -> None:
    run = make_run(tmp_path / "runs", "bad", wandb={"alerts": wanted})
    log_steps(run, range(1, 4))
    run.event("early_stop", step=3)
    run.event("ranks_hung", step=2, seconds=4.0, ranks=[], stacks="stacks")
    error = {"who": "rank 0", "type": "RuntimeError", "message": "CUDA out of memory", "exit_code": 1, "time": 1.0}
    write_json(run.attempt_dir(1) / "errors/rank-0.json", error)
    end(run, RunState.FAILED, EXIT_FAILED, "rank 0: RuntimeError: CUDA out of memory")
    for _ in range(2):
        (run.wandb / "online.json").unlink(missing_ok=True)  # as if nobody knew that all is sent
        send_rest(run)
    output = wandb_server.run(run.id).alerts
    titles = sorted(alert["title"].split(":")[0] for alert in output)
    assert titles == {"none": [], "failures": ["failed", "ranks hung"], "all": ["failed", "ranks hung", "stopped early"]}[wanted]
    if output:
        text = next(alert["text"] for alert in output if alert["title"].startswith("failed"))
        assert "out of memory" in text
        assert f"ropewalk why {run.id}" in text


@pytest.mark.soak(
    "several attempts of a sidecar and a server; make test runs test_every_line_once_though_sidecar_and_relay_are_killed"
)
def test_a_preempted_attempt_does_not_look_crashed(wandb_server: WandbServer, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "moved")
    log_steps(run, range(1, 4))
    beside = Started(sidecar, run.path, 1)
    until(lambda: len(wandb_server.run(run.id).lines) > 1, Patience.START)
    write_json(run.attempt_dir(1) / "nodes/node-0.json", {"exit_code": 85})
    assert beside.hang_up() == 0
    assert wandb_server.run(run.id).preempting
    assert wandb_server.run(run.id).alerts == []


def test_attempts_commit_and_uncommitted_changes_are_where_wandb_shows_them(wandb_server: WandbServer, tmp_path: Path) -> None:
    record = {"job": "pretrain", "cluster": "local", "config": {"name": "x", "wandb": {"notes": "a try"}}}
    code = {"commit": "c" * 40, "diff": "--- a/x\n+++ b/x"}
    run = RunDir.create("coded", {**record, "code": code}, tmp_path / "runs")
    run.begin_attempt(handle="local:1")
    log_steps(run, range(1, 4))
    end(run, RunState.REQUEUED, 85, "node 0 was lost")
    run.begin_attempt(handle="local:2")
    end(run)
    send_rest(run)
    output = wandb_server.run(run.id)
    assert output.fields["commit"] == "c" * 40
    assert wandb_server.files[f"{run.id}/diff.patch"].decode().strip() == code["diff"]
    assert output.fields["notes"] == "a try\nattempt 1: REQUEUED, node 0 was lost\nattempt 2: SUCCEEDED, done"
    assert [line["_timestamp"] for line in output.history] == [line["time"] for line in run.read_metrics()]


def test_no_key_in_any_file(wandb_server: WandbServer, tmp_path: Path) -> None:
    key = os.environ["WANDB_API_KEY"]
    run = make_run(tmp_path / "runs", "quiet")
    log_steps(run, range(1, 4))
    end(run)
    send_rest(run)
    results = [path for path in run.path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert results == []
