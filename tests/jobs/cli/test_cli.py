"""The command as a user types it: exit codes, one-line mistakes, JSON, over a cluster that is made up."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import Mount
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.cli.known_runs import STATE_VARIABLE, cluster_of, forget, remember
from ropewalk.jobs.runs.show.doctor import known_limitation
from tests.jobs.shell import Shell, pretrain

# --- submitting


def test_run_ends_with_one_json_object_and_the_outcome(shell: Shell) -> None:
    last = json.loads(shell("run", *pretrain("--on", "good", "--json")).splitlines()[-1])
    assert last["state"] == "SUCCEEDED"
    assert last["job"] == "pretrain"
    assert (last["step"], last["train/loss"]) == (3, 1.5)
    assert Path(last["directory"]).name == last["run"]
    assert len(shell.out.splitlines()) == 1


def test_a_program_behind_two_dashes_keeps_its_words(shell: Shell) -> None:
    arguments = ["echo", "\U0001f600 $(touch injected)", "*", "a: b"]
    run = shell("submit", "command", "--on", "slow", "launch=once", "--", *arguments).strip()
    assert RunDir(shell.home / "runs" / run).record["config"]["command"] == arguments


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_program_without_its_job_is_a_mistake(shell: Shell, command: str) -> None:
    shell(command, "--on", "slow", "--", "python", "train.py", expect=2)
    assert shell.err == f"error: no job is named; write: {command} command -- python train.py\n"


def test_a_place_that_cannot_be_is_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("ROPEWALK_RUNS", str(Path("file").resolve()))
    shell("submit", *pretrain("--on", "slow"), expect=2)
    assert shell.err.splitlines()[-1].startswith("error: ")
    assert "not a directory" in shell.err


def test_run_of_a_failing_job_exits_1_and_says_why(shell: Shell) -> None:
    last = json.loads(shell("run", *pretrain("--on", "bad", "--json"), expect=1))
    assert last["state"] == "FAILED"
    assert "ZeroDivisionError: oh" in shell.err
    assert f"ropewalk why {last['run']}" in shell.err


def test_submit_prints_the_run_id_alone(shell: Shell) -> None:
    first = shell("submit", *pretrain("--on", "slow", "resources.nodes=1..4")).strip()
    assert RunDir(shell.home / "runs" / first).record["resources"]["nodes"] == "1..4"
    second = shell("submit", *pretrain("--on", "slow", "--after", first[:25])).strip()
    assert shell.asked("submit")[1] == {"verb": "submit", "run": second, "nodes": "1", "after": [first]}


def test_submit_as_json(shell: Shell) -> None:
    shell("submit", *pretrain("--on", "slow", "--each", "seed=1,2", "--json"))
    runs = RunDir.all(shell.home / "runs")
    assert [json.loads(line) for line in shell.out.splitlines()] == [
        {"run": run.id, "job": "pretrain", "directory": str(run.path)} for run in runs
    ]


def test_a_name_is_the_beginning_of_the_id(shell: Shell) -> None:
    run = shell("submit", *pretrain("--on", "slow", "name=My run/1")).strip()
    assert run.startswith("my-run-1-")
    assert "my-run-1-dry-run" in shell("submit", *pretrain("--on", "local", "name=My run/1", "--script"))


def test_a_file_and_overrides_in_any_order(shell: Shell) -> None:
    Path("job.yaml").write_text("data: data\nsteps: 9\noptim: {lr: 1e-2, weight_decay: 0.2}\n")
    run = RunDir(
        shell.home / "runs" / shell("submit", "pretrain", "optim.lr=5e-3", "-c", "job.yaml", "--on", "slow", "seq_len=8").strip()
    )
    config = run.record["config"]
    assert (config["steps"], config["seq_len"]) == (9, 8)
    assert (config["optim"]["lr"], config["optim"]["weight_decay"]) == (5e-3, 0.2)
    assert config["data"] == str(shell.home / "data") or config["data"][0]["path"] == str(shell.home / "data")


def test_the_script_is_printed_and_nothing_is_left(shell: Shell) -> None:
    script = shell("run", *pretrain("--on", "good", "--script", "resources.nodes=3"))
    assert script == shell("submit", *pretrain("--on", "good", "--script", "--dry-run", "resources.nodes=3"))
    assert script == "#!/bin/bash\n# pretrain-dry-run on 3 nodes\npython -m ropewalk.cluster.agent runs/pretrain-dry-run\n"
    assert not (shell.home / "runs").exists()
    assert "cannot be combined with --resume" in shell.mistake("run", "pretrain", "--resume", "it", "--dry-run")


def test_the_record_holds_what_the_run_is_and_no_secret(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush")
    run = RunDir(shell.home / "runs" / shell("submit", *pretrain("--on", "slow", "name=Twist It")).strip())
    assert run.id.startswith("twist-it-")
    record = run.record
    assert (record["job"], record["entry"], record["engine"]) == ("pretrain", "ropewalk.jobs.training.pretrain.job:main", "ranks")
    assert record["cluster"] == "slow"
    assert record["sidecars"] == ["ropewalk.jobs.runs.mirror.sidecar"]
    assert {"commit", "branch", "dirty"} <= set(record["code"])
    assert record["versions"]["torch"]
    assert record["command"][:3] == ["ropewalk", "submit", "pretrain"]
    assert "hush" not in (run.path / "run.yaml").read_text()


def test_masking() -> None:
    from ropewalk.jobs.runs.submit.provenance import mask_secrets

    settings = {
        "api_key": "a", "hf_token": "b", "s3": {"secret": "c", "password": "d"}, "text_key": "text", "eos_token": "<end>",
        "tokens": 5, "url": "https://me:pw@host/x", "list": [{"aws_secret_access_key": "e"}],
    }  # fmt: skip
    assert mask_secrets(settings) == {
        "api_key": "***", "hf_token": "***", "s3": {"secret": "***", "password": "***"}, "text_key": "text",
        "eos_token": "<end>", "tokens": 5, "url": "https://***@host/x", "list": [{"aws_secret_access_key": "***"}],
    }  # fmt: skip


def test_a_scheduler_that_refuses(shell: Shell) -> None:
    shell("submit", *pretrain("--on", "closed"), expect=1)
    assert shell.err == "error: the queue is closed until Monday\n"
    assert not RunDir.all(shell.home / "runs")


# --- mistakes


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        (("run", "pretran"), "did you mean 'pretrain'"),
        (("serve", "model=production"), "'serve' is a job, not a command: `ropewalk run serve ...` starts one"),
        (("run", *pretrain("seq_lne=4")), "unknown key 'seq_lne'; did you mean 'seq_len'"),
        (("run", *pretrain("seq_len=many")), "seq_len"),
        (("run", *pretrain("parallel.context=2", "--dry-run")), "must be 1: context parallelism is not supported"),
        (("run", *pretrain("optim.lr=-1")), "optim.lr"),
        (("run", "pretrain", "data=nowhere", "steps=1"), "nowhere"),
        (("run", *pretrain("-c", "none.yaml")), "none.yaml: no such configuration file"),
        (("run", *pretrain("steps")), "key=value"),
        (("run", *pretrain("--seq_len=5")), "--seq_len"),
        (("run", *pretrain("--on", "mars")), "unknown cluster 'mars'"),
        (("submit", *pretrain("--on", "good", "--after", "nobody")), "no run 'nobody'"),
        (("show", "nobody"), "no run 'nobody'"),
        (("show",), "RUN"),
        (("logs", "x", "--rank", "first"), "'--rank'"),
        (("fly",), "fly"),
        (("stop", "x"), "`ropewalk cancel RUN`"),
        (("train",), "`ropewalk run pretrain`"),
        (("list",), "`ropewalk ps --all`"),
        (("status",), "`ropewalk ps --all`"),
        (("run", *pretrain("--each", "seed=1..2")), "use `ropewalk submit`, which does not, with --each"),
        (("run", *pretrain("--detach")), "use `ropewalk submit`"),
        (("run", *pretrain("-c", "a.yaml", "--config=b.yaml")), "--config is given twice; name one job file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(shell: Shell, sentence: tuple[str, ...], message: str) -> None:
    assert message in shell.mistake(*sentence)
    assert not (shell.home / "runs").exists()


# --- looking


def test_ps_asks_each_scheduler_once(shell: Shell, running: RunDir) -> None:
    for _ in range(3):
        shell("submit", *pretrain("--on", "slow"))
    shell("submit", *pretrain("--on", "good"))
    rows = json.loads(shell("ps", "--json"))
    assert len(rows) == 4
    assert len(shell.asked("states")) == 1
    mine = next(row for row in rows if row["run"] == running.id)
    assert (mine["state"], mine["step"], mine["steps"], mine["loss"]) == ("RUNNING", 3, 3, 2.0)
    assert {row["state"] for row in json.loads(shell("ps", "--all", "--json"))} == {"RUNNING", "SUCCEEDED"}
    assert running.id in shell("ps")


@pytest.mark.parametrize("command", ["ps", "cost", "gc", "models", "sync"])
def test_lists_name_the_clusters_behind_ssh(shell: Shell, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv(STATE_VARIABLE, str(shell.home / "state"))
    assert "--on" not in shell(command)
    remember("train-1", "big")
    assert shell(command).endswith(f"runs that were submitted from here: `ropewalk {command} --on big`\n")


def test_latest_is_the_newest_run_that_was_submitted_wherever_it_is(
    shell: Shell, running: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_VARIABLE, str(shell.home / "state"))
    submitted = (running.path / "run.yaml").stat().st_mtime
    for number, cluster in enumerate(["big", "team"]):
        remember(f"train-{number}", cluster)
        os.utime(shell.home / f"state/ropewalk/runs/train-{number}", (submitted + number,) * 2)
    assert cluster_of("latest") == "team"
    forget("train-1")
    assert cluster_of("latest") is None


def test_a_wrong_key_of_a_profile_is_an_error_of_any_command(shell: Shell) -> None:
    file = shell.home / "clusters.yaml"
    file.write_text(file.read_text() + "big: {backend: slurm, hots: login.big, runs: /scratch}\n")
    messages = {shell.mistake(*command, "--on", "big") for command in (("ps",), ("submit", *pretrain()))}
    assert messages == {"error: cluster 'big': unknown key 'hots'; did you mean 'host'?\n"}


def test_show(shell: Shell, running: RunDir) -> None:
    answer = json.loads(shell("show", running.id, "--json"))
    assert answer["metrics"]["train/loss"] == 2.0
    assert answer["attempt_list"][0]["handle"] == "fake:1"
    page = shell("show", "latest")
    assert running.id in page
    assert "train/loss" in page


def test_show_plots(shell: Shell, running: RunDir) -> None:
    assert shell("show", running.id, "--plot").strip() == str(running.path / "curves.png")
    shell("show", running.id, "--plot", "here.png")
    assert Path("here.png").read_bytes().startswith(b"\x89PNG")
    shell("show", running.id, "not/yet/there.png")
    assert Path("not/yet/there.png").exists()


def test_show_plot_of_a_job_without_metrics_names_its_page(shell: Shell) -> None:
    run = RunDir.create("evaluate", {"job": "evaluate", "config": {"model": "m"}, "cluster": "good"}, shell.home / "runs")
    assert "no training metrics; nothing to plot\n" in shell.mistake("show", run.id, "--plot")
    report = run.path / "evaluation/report.html"
    report.parent.mkdir()
    report.touch()
    assert f"it made {report.relative_to(shell.home)}" in shell.mistake("show", run.id, "--plot")


class _Chat:
    def introduction(self) -> str:
        return "base has no chat template"

    def answer(self, text: str) -> str:
        return text.upper()

    def close(self) -> None:
        print("closed")


def test_chat_says_with_whom_and_how_it_ends(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["hello", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("ropewalk.jobs.inference.scoring.endpoint_chat.find_endpoint", lambda _: None)
    monkeypatch.setattr("ropewalk.jobs.inference.scoring.chat.open_chat", lambda *_, **__: _Chat())
    # last: a module that is imported now would keep the replacement
    monkeypatch.setattr("ropewalk.jobs.runs.models.find_model.find_model", lambda _: None)
    shell("chat", "base")
    assert shell.out == "HELLO\nclosed\n"
    assert shell.err == "opening base ...\nbase has no chat template. An empty line ends the conversation.\n"
    lines = iter(["hello", ""])
    monkeypatch.setattr(_Chat, "close", lambda _: None)
    assert json.loads(shell("chat", "base", "--json")) == {"prompt": "hello", "answer": "HELLO"}


def test_chat_refuses_a_wrong_name_before_it_loads_anything(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ropewalk.jobs.inference.scoring.endpoint_chat", None)
    assert "'nobody' is neither a Hugging Face directory" in shell.mistake("chat", "nobody")


def test_logs_tell_who_spoke(shell: Shell, running: RunDir) -> None:
    assert shell("logs", running.id).splitlines() == ["1.node-0 | agent up", "1.rank-0 | hello", "1.rank-1 | world"]
    assert shell("logs", running.id, "--rank", "1").splitlines() == ["1.rank-1 | world"]
    assert shell("logs", running.id, "--node", "0").splitlines() == ["1.node-0 | agent up"]


def test_logs_follow_to_the_end_over_attempts(shell: Shell, running: RunDir) -> None:
    from ropewalk.jobs.runs.show.logs import follow_logs

    ended: list[bool] = []

    def go_on(_: float) -> None:
        if not ended:
            running.begin_attempt()
            (running.log_dir(2) / "rank-0.log").write_text("again\nno newline")
            running.write_outcome(2, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
            ended.append(True)

    lines = list(map(str, follow_logs(running, lambda: bool(ended), rank=0, sleep=go_on)))
    assert lines == ["1.rank-0 | hello", "2.rank-0 | again", "2.rank-0 | no newline"]


def test_top_reads_files(shell: Shell, running: RunDir) -> None:
    page = shell("top", "--once")
    for word in (running.id, "step 3/3", "1,000", "node 0", "55", "3.2"):
        assert word in page


# --- ending


def test_scale_asks_only_a_live_elastic_run(shell: Shell, running: RunDir) -> None:
    assert "a fixed number" in shell.mistake("scale", running.id, "2")
    running.describe_attempt(running.attempts()[-1], resources={"nodes": "1..4"})
    assert "choose one of these" in shell.mistake("scale", running.id, "5")
    shell("scale", running.id, "2")
    assert running.wanted_nodes == 2


def test_a_waiting_run_is_held_released_and_lowered(shell: Shell, running: RunDir) -> None:
    assert "`ropewalk release" in shell("hold", running.id)
    shell("release", running.id)
    assert "is lowered by 7" in shell("priority", running.id, "7")
    assert [shell.asked(verb)[-1]["run"] for verb in ("hold", "release", "priority")] == [running.id] * 3
    assert "users can only lower" in shell.mistake("priority", running.id, "999")
    over = shell("submit", *pretrain("--on", "good")).strip()
    assert "has ended: SUCCEEDED" in shell.mistake("hold", over)


def test_cancel_and_resume(shell: Shell, running: RunDir) -> None:
    assert running.id in shell("cancel", running.id)
    assert running.cancel_requested
    assert "resources.nods" in shell.mistake("resume", running.id, "resources.nods=2")
    shell("resume", running.id, "resources.nodes=2", "--detach")
    assert not running.cancel_requested
    assert shell.asked("submit")[-1]["nodes"] == "2"
    assert running.attempts() == [1, 2]
    shell("resume", running.id, "--detach")
    assert shell.asked("submit")[-1]["nodes"] == "2"  # as last time


def test_over_is_over(shell: Shell) -> None:
    run = shell("submit", *pretrain("--on", "good")).strip()
    assert "has already ended: SUCCEEDED" in shell("cancel", run)
    assert "has succeeded" in shell.mistake("resume", run)
    assert json.loads(shell("wait", run, "--json"))["step"] == 3
    assert "It succeeded" in shell("why", run)
    failed = shell("submit", *pretrain("--on", "bad")).strip()
    shell("wait", failed, expect=1)


@pytest.mark.parametrize(
    ("cause", "record", "message"),
    [
        ("rank 1: RuntimeError: CUDA out of memory", {}, "a GPU ran out of memory"),
        ("rank 0: OSError: [Errno 28] No space left on device", {}, "a disk is full"),
        ("node 1 died (SIGKILL)", {}, "out-of-memory killer"),
        ("x", {"type": "CorruptShardError", "message": "part-00003", "exit_code": 42}, "a shard of the data set is damaged"),
        ("x", {"type": "KeyError", "message": "'w'", "traceback": 'File "model.py", line 7, in f\n  w["w"]\nKeyError'}, "line 7"),
    ],
)
def test_why_in_plain_words(shell: Shell, cause: str, record: dict[str, Any], message: str) -> None:

    run = RunDir(shell.home / "runs" / shell("submit", *pretrain("--on", "slow")).strip())
    if record:
        write_json(run.attempt_dir(1) / "errors/group-1-rank-0.json", {"who": "rank 0", "time": 1.0, "exit_code": 1, **record})
    run.event("rank_lost", rank=1, node=0, exit_code=-9, attempt=1)
    run.write_outcome(1, Outcome(state=RunState.FAILED, exit_code=1, cause=cause))
    page = shell("why", run.id)
    for word in (message, "What to do", "rank 1 on node 0 killed (SIGKILL)"):
        assert word in page


def test_a_broken_line_ends_no_command(shell: Shell, running: RunDir) -> None:
    """Two machines that append to one file on NFS leave such a line, or one that loses power."""
    broken = b'{"step": 3, "train/lo{"step": 4, "attempt": 1, "time": 1.0}\n\x00\xff\n7\n{"half": 1}\n'
    running.event("rank_lost", rank=1, node=0, exit_code=-9, attempt=1)
    for path in (running.metrics, *running.events.files(), running.attempt_dir(1) / "nodes/node-0.jsonl"):
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as stream:
            stream.write(broken)
    for arguments in (["show"], ["why"]):
        page = " ".join(shell(*arguments, running.id).split())
        assert "3 of metrics.jsonl" in page
        assert "rank 1 on node 0 killed" in page
    shell("show", running.id, "--plot", str(shell.home / "x.png"))
    assert json.loads(shell("show", running.id, "--json"))["broken_lines"]["metrics.jsonl"] == 3
    for arguments in (["ps"], ["top", "--once"], ["logs", running.id]):
        shell(*arguments)


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (Mount("ext4"), ""),
        (Mount("nfs4", frozenset({"rw"})), "up to a minute late"),
        (Mount("nfs", frozenset({"nocto"})), "mount it without"),
        (Mount("lustre"), "many small files"),
        (Mount("tmpfs"), "when the machine restarts"),
        (Mount("overlay"), "with the container"),
        (Mount("fuse.sshfs"), "depends on its server"),
    ],
)
def test_doctor_knows_what_a_file_system_hurts(mount: Mount, message: str) -> None:
    assert message in known_limitation(mount)
    assert bool(known_limitation(mount)) == bool(message)


def test_logs_of_a_run_without_output_say_so(shell: Shell) -> None:
    run = RunDir.create("x", {"job": "pretrain", "config": {}, "cluster": "good"}, shell.home / "runs")
    assert shell("logs", run.id) == ""
    assert shell.err == f"{run.id} has no output yet; `ropewalk why {run.id}` explains its state\n"


def test_doctor_marks_what_only_some_runs_need(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Check(name="engine vllm", ok=False, detail="vllm is not on the PATH", optional=True)
    monkeypatch.setattr("ropewalk.jobs.inference.engines.checks.engine_checks", lambda: [missing])
    (line,) = [line for line in shell("doctor", "--on", "good").splitlines() if "engine vllm" in line]
    assert line.split()[:3] == ["--", "engine", "vllm"]


def test_doctor(shell: Shell) -> None:
    assert "made up" in shell("doctor", "--on", "good")
    assert "engine vllm" in (output := shell("doctor", "--on", "good"))
    assert "file system" in output
    assert "!!" in shell("doctor", "--on", "bad", expect=1)


def test_sync_without_a_network(shell: Shell, running: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(shell.home))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    shell("sync", running.id, expect=1)
    assert "`wandb login`" in shell.err


def test_help_of_a_job_lists_its_keys(shell: Shell) -> None:
    page = shell("run", "pretrain", "--help")
    for key in ("seq_len", "optim.lr", "batch.global_batch", "resources.nodes", "checkpoint.every_steps"):
        assert key in page
    assert "preprocess" in shell("run", "--help")
    assert "quickstart" in shell()
