"""Several jobs, some of which need others: submitted once, each a run, resumed as a whole, whoever is killed meanwhile."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import ropewalk.jobs.orchestration.pipeline.job as pipeline_runs
from ropewalk.cluster.config_reader import load_config, read_job_file, read_yaml
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.kill import end, processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.job import config_of_run, step_runs
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.status import final_outcome, states
from ropewalk.jobs.runs.submit import children
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.submit import submit
from tests.jobs.corpus import WORDS
from tests.jobs.launch import TINY
from tests.jobs.shell import Shell
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[4]
SHORT = {"job": "command", "config": {"command": "true", "launch": "once"}}
Start = Callable[[dict[str, Any]], RunDir]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Submit a pipeline on this machine; nothing of it is left after the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    yield lambda steps: submit("pipeline", load_config(PipelineConfig, {"name": "life", "steps": steps}))
    end(processes_of(tmp_path))
    until(lambda: not processes_of(tmp_path), Patience.START)


def steps_of(pipeline: RunDir) -> dict[str, RunDir]:
    return step_runs(pipeline, config_of_run(pipeline))


def ended(run: RunDir) -> Outcome:
    until(lambda: final_outcome(run) is not None, Patience.RUN)
    outcome = final_outcome(run)
    assert outcome is not None
    return outcome


def shell_step(line: str, *needs: str) -> dict[str, Any]:
    return {"job": "command", "needs": list(needs), "config": {"command": line, "launch": "once", "retries": {"bugs": 0}}}


def kill_supervisor(run: RunDir) -> None:
    psutil.Process(int((read_json(run.path / "supervisor.json") or {})["pid"])).kill()


def test_documents_become_a_model_with_a_score_whoever_is_killed(start: Start, tmp_path: Path) -> None:
    lines = [json.dumps({"text": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(30))}) for i in range(300)]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    training = {"model": {"config": TINY}, "seq_len": 32, "steps": 30, "batch": {"global_batch": 4, "micro_batch": 2}}
    training |= {"checkpoint": {"every_steps": 5}, "validation": {"every_steps": 100}}
    keys = {"input": ["docs.jsonl"], "output": "out/tokens", "tokenizer": {"train": 300}, "validation_fraction": 0.1, "actors": 1}
    pipeline = start(
        {
            "tokens": {"job": "preprocess", "config": keys},
            "model": {"job": "pretrain", "config": training, "set": {"data": "tokens", "optim.lr": 0.01}},
            "score": {"job": "evaluate", "config": {"model": "model", "data": "tokens", "max_sequences": 3}},
        }
    )
    steps = steps_of(pipeline)
    assert steps["model"].record["config"]["data"] == str(tmp_path / "out/tokens")
    until(steps["model"].metrics.exists, Patience.RUN)
    kill_supervisor(steps["model"])
    kill_supervisor(steps["score"])
    kill_supervisor(pipeline)
    until(lambda: states([steps["model"]])[steps["model"].id].word == "lost")
    resume(pipeline)
    assert ended(pipeline).state is RunState.SUCCEEDED, ended(pipeline).cause
    assert len(RunDir.all(tmp_path / "runs")) == 4, "each step is one run, however often it was begun"
    assert [len(run.attempts()) for run in steps.values()] == [1, 2, 2]
    result = pipeline.results()["steps"]
    assert result["score"]["model_step"] == 30
    assert result["score"]["run"] == steps["score"].id
    assert {run.record["config"]["wandb"]["group"] for run in steps.values()} == {pipeline.id}


def test_a_failed_step_stops_what_needs_it_and_nothing_else(start: Start, tmp_path: Path) -> None:
    pipeline = start(
        {
            "data": shell_step(f"test -e {tmp_path}/mended || (echo no space; exit 3)"),
            "train": shell_step("true", "data"),
            "score": shell_step("echo {train.run}"),
            "beside": shell_step(f"until test -e {tmp_path}/go; do sleep 0.1; done"),
        }
    )
    steps = steps_of(pipeline)
    assert ended(steps["data"]).state is RunState.FAILED
    outcome = ended(steps["train"])
    assert outcome.state is RunState.CANCELLED
    assert outcome.cause.startswith(f"never started: it waited for {steps['data'].id}, which ended as FAILED")
    assert ended(steps["score"]).state is RunState.CANCELLED
    outcome = ended(pipeline)
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert outcome.cause.startswith(f"its step data ({steps['data'].id}) ended as FAILED: ")
    assert "no space" in outcome.cause
    diagnosis = diagnose(pipeline, states([pipeline])[pipeline.id])
    assert f"step data ({steps['data'].id}) FAILED" in "\n".join(diagnosis.evidence)
    assert f"ropewalk resume {pipeline.id}" in diagnosis.remedy
    (tmp_path / "go").touch()
    assert ended(steps["beside"]).state is RunState.SUCCEEDED, "the pipeline's end is not that of a step beside it"
    (tmp_path / "mended").touch()
    resume(pipeline)
    assert ended(pipeline).state is RunState.SUCCEEDED
    assert {name: len(run.attempts()) for name, run in steps_of(pipeline).items()} == {
        "data": 2,
        "train": 2,
        "score": 2,
        "beside": 1,
    }


@pytest.fixture
def pipeline_file(shell: Shell) -> Path:
    path = shell.home / "pipeline.yaml"
    steps = {"a": SHORT, "b": {**SHORT, "needs": ["a"]}, "c": {**SHORT, "needs": ["a", "b"]}}
    path.write_text(yaml.safe_dump({"name": "life", "steps": steps}))
    return path


@pytest.mark.parametrize("position", range(10))
def test_a_submitter_that_is_killed_submits_nothing_twice(shell: Shell, pipeline_file: Path, position: int) -> None:
    """Killed before or after it has written down or submitted each of the steps."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(action: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                if count == position:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return action(*args, **kwargs)

            return call

        for module, names in ((pipeline_runs, ("create_child", "start_child", "locked")), (children, ("child_keys",))):
            for name in names:  # each is called between two effects
                setattr(module, name, counted(getattr(module, name)))
        try:
            submit("pipeline", load_config(PipelineConfig, read_yaml(pipeline_file)), "slow")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (pipeline,) = [run for run in RunDir.all(shell.home / "runs") if run.record["job"] == "pipeline"]
    resume(pipeline)
    submitted = shell.asked("submit")
    steps = steps_of(pipeline)
    assert sorted(line["run"] for line in submitted) == sorted([pipeline.id, *(run.id for run in steps.values())])
    after = {line["run"]: line["after"] for line in submitted}
    a, b, c = steps.values()
    assert (after[a.id], after[b.id], after[c.id]) == ([], [a.id], [a.id, b.id])
    assert set(after[pipeline.id]) == {a.id, b.id, c.id}
    assert len(RunDir.all(shell.home / "runs")) == 4


def test_it_is_drawn_as_a_tree_shown_and_cancelled_as_a_whole(shell: Shell, pipeline_file: Path) -> None:
    name = shell("submit", "pipeline", "-c", str(pipeline_file), "--on", "slow").split()[-1]
    shell("submit", "command", "--on", "good", "launch=once", "--", "true")
    drawn = [line for line in shell("ps", "--tree").splitlines() if "life" in line]
    assert [line.split("life")[0].strip() for line in drawn] == ["", "├─", "├─", "└─"]
    assert "c, after a and b" in drawn[-1]
    rows = json.loads(shell("ps", "--all", "--tree", "--json"))
    assert [(row["job"], row["parent"]) for row in rows][:4] == [("pipeline", None), *[("command", name)] * 3]
    assert [step["needs"] for step in json.loads(shell("show", name, "--json"))["steps"].values()] == [[], ["a"], ["a", "b"]]
    assert "NEEDS" in shell("show", name)
    shell("cancel", name)
    assert len(shell.asked("cancel")) == 4


def test_a_dry_run_has_every_step(shell: Shell, pipeline_file: Path) -> None:
    output = shell("run", "pipeline", "-c", str(pipeline_file), "--on", "good", "--script")
    assert [line for line in output.splitlines() if line.startswith("# the step")] == [
        "# the step a",
        "# the step b, once a succeeded",
        "# the step c, once a and b succeeded",
    ]
    assert not (shell.home / "runs").exists()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "steps"),
        ({"a b": SHORT}, "letters, digits"),
        ({"a": {**SHORT, "needs": ["b"]}}, "a needs 'b', which is not a step"),
        ({"a": {**SHORT, "needs": ["b"]}, "b": {**SHORT, "needs": ["a"]}}, "this cycle can never start"),
        ({"a": {**SHORT, "needs": ["a"]}}, "a needs itself and could never start"),
        ({"model": SHORT, "b": {**SHORT, "set": {"command": "x {modl.run}"}}}, "steps.b: {modl.run}: no step 'modl'; did you"),
        ({"data": SHORT, "b": {**SHORT, "set": {"command": ["x", "{dat.run}"]}}}, r"did you mean {data.run}\? steps: data, b"),
        ({"first": {**SHORT, "set": {"command": "x {first.run}"}}}, "steps.first: {first.run}: a step cannot refer to itself"),
        ({"a": {**SHORT, "on": "big"}}, "steps.a: .*`on`: all steps run on the cluster that the pipeline is submitted to"),
        ({"a": {"job": "comand"}}, "steps.a: unknown job 'comand'; did you mean 'command'"),
        ({"a": {**SHORT, "set": {"comand": "x"}}}, "steps.a: unknown key 'comand'; did you mean 'command'"),
        ({"a": SHORT, "b": {"job": "pretrain", "config": {"data": "a", "steps": 1}}}, "the step 'a' has no 'output'"),
        ({"a": SHORT, "b": {**SHORT, "set": {"command": "x {a.color}"}}}, "the step 'a' has no 'color'"),
        ({"a": {"job": "pretrain", "config": {"data": "nowhere", "steps": 1}}}, "steps.a: data: .*nowhere does not exist"),
    ],
)
def test_mistakes_leave_nothing_behind(shell: Shell, steps: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        submit("pipeline", load_config(PipelineConfig, {"steps": steps}), "good")
    assert not (shell.home / "runs").exists()


def test_braces_of_a_program_are_its_own(shell: Shell) -> None:
    lines = ["awk '{print $1}'", "f '{mode.value} {x.run} {models.name} ${modl.run}'", 'jq "{a: .b}"']
    steps = {"model": SHORT, "b": {**SHORT, "set": {"command": lines[0]}}, "c": {**SHORT, "set": {"command": lines[1:]}}}
    load_config(PipelineConfig, {"steps": steps}).resolved()


def test_the_reason_against_a_cluster_of_a_step_is_told_of_a_file_too(shell: Shell) -> None:
    """YAML reads the key `on` as true."""
    (shell.home / "p.yaml").write_text("steps:\n  a: {job: command, on: big, config: {command: [ls], launch: once}}\n")
    assert "`on`: all steps run on the cluster" in shell.mistake("submit", "pipeline", "-c", "p.yaml", "--on", "good")


def test_the_examples_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(PipelineConfig, read_job_file(ROOT / "jobs/configs/pipeline.yaml", "pipeline"))
    assert isinstance(config, PipelineConfig)
    assert config.order() == ["tokens", "model", "score", "samples"]
    assert config.all_configs()["model"].model_dump()["data"] == str(ROOT / "data/tokens")
    config = load_config(PipelineConfig, read_job_file(ROOT / "jobs/configs/assistant.yaml", "pipeline"))
    assert isinstance(config, PipelineConfig)
    assert config.order() == ["sft", "dpo", "export"]
    assert config.all_configs()["sft"].model_dump()["validation"]["keep_best"], "which is what is exported"
