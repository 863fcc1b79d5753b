"""The loop on this machine, with real steps: unattended to production, killed again and again, and beside a run that serves."""

import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.process.kill import end, processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.models.registry.promote import promote, rollback
from ropewalk.jobs.runs.models.model_versions import RegisteredModel
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.status import GONE, final_outcome, settle
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.submit import configure, submit
from ropewalk.jobs.serving.feedback.records import FOLDER, exchanges_store, ratings_store
from ropewalk.jobs.serving.refresh.config import RefreshConfig
from ropewalk.jobs.serving.refresh.rounds import read_rounds
from ropewalk.jobs.serving.trace import feedback_behind, trace_answer
from tests.jobs.evaluation.evaluate.tasks import choice_task
from tests.jobs.serving.refresh.staged import captured, keep, rated
from tests.jobs.serving.serve.serving import Serving
from tests.jobs.training.finetune.chats import chats, make_base
from tests.patience import HANG_SECONDS, Patience, until

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {
    "steps": 12,
    "seq_len": 96,
    "batch": {"global_batch": 6, "micro_batch": 3},
    "optim": {"lr": 3e-3, "warmup_steps": 2},
    "validation": {"every_steps": 100},
    "checkpoint": {"every_steps": 2},
}
GATE = {"evaluate": {"tasks": ["choice.yaml"], "require": {"choice": ">= 0.0"}}}
KILLS, MOST_LOOKS = 10, 20_000
ANSWERS = 4  # of the candidate, as a canary


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, value in {"PYTHONPATH": ROOT, "ROPEWALK_RUNS": tmp_path / "runs", "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    make_base(tmp_path / "base")
    choice_task(tmp_path, 20)
    promote(str(tmp_path / "base"), force="the first")
    yield tmp_path
    end(processes_of(tmp_path))
    until(lambda: not processes_of(tmp_path), Patience.START)


def refresh(folder: Path, name: str, **keys: Any) -> RunDir:
    """Submit a refresh that watches a run of which sixty answers were corrected."""
    served = RunDir.create("serve", {"job": "serve", "config": {}, "cluster": "local"}, folder / "runs")
    served.begin_attempt()
    turns = [chat["messages"][:2] for chat in chats(60, turns=1)]
    keep(exchanges_store(served.path / FOLDER), [captured(n, turn["content"], "wrong") for n, (turn, _) in enumerate(turns)])
    messages = [rated(n, correction=json.dumps(answer["content"])) for n, (_, answer) in enumerate(turns)]
    keep(ratings_store(served.path / FOLDER), messages)
    values = {"watch": served.id, "name": name, "train": TRAIN, "gate": GATE, "canary": None, "approve": False, **keys}
    return submit("refresh", load_config(RefreshConfig, values))


def ended(run: RunDir) -> RunState:
    until(lambda: final_outcome(run) is not None, Patience.CLUSTER)
    outcome = final_outcome(run)
    assert outcome is not None
    return outcome.state


def weights_of(folder: Path) -> str:
    version = RegisteredModel(folder / "runs", "main").current("production")
    assert version is not None
    return version.weights


@pytest.mark.soak("a training, two evaluations; test_loop.py plays them")
def test_from_feedback_to_production_without_a_person(folder: Path) -> None:
    began = time.monotonic()
    run = refresh(folder, "fresh")
    assert ended(run) is RunState.SUCCEEDED, final_outcome(run)
    (facts,) = read_rounds(run)
    assert facts["outcome"] == "promoted", facts["message"]
    assert time.monotonic() - began < 20 * 60
    began = time.monotonic()
    assert rollback().version == 1
    assert time.monotonic() - began < 2


@pytest.mark.soak("ten kills a run; test_loop.py kills before and after effects")
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_points_it_ends_the_same(folder: Path, seed: int) -> None:
    """Any process of the run or of its steps: drivers, supervisors, agents, ranks."""
    undisturbed = refresh(folder, "calm")
    assert ended(undisturbed) is RunState.SUCCEEDED, final_outcome(undisturbed)
    (calm,) = read_rounds(undisturbed)
    rollback()
    draw, run = random.Random(seed), refresh(folder, "killed")
    killed: list[str] = []
    for _ in range(MOST_LOOKS):
        outcome = final_outcome(run)
        if outcome is not None and outcome.state is RunState.SUCCEEDED:
            break
        if outcome is not None or settle(run).word in GONE:
            resume(run)
        elif len(killed) < KILLS:
            time.sleep(draw.uniform(0.1, 6.0))
            results = [process for process in processes_of(folder) if process.is_running()]
            if results:
                victim = draw.choice(results)
                killed.append(" ".join(victim.cmdline()[:4]) if psutil.pid_exists(victim.pid) else "gone")
                victim.kill()
        else:
            time.sleep(0.5)
    (facts,) = read_rounds(run)
    assert (facts["outcome"], facts["data"] | {"run": ""}) == (calm["outcome"], calm["data"] | {"run": ""}), killed
    assert {comparison["name"]: comparison["candidate"] for comparison in facts["verdict"]["comparisons"]} == {
        comparison["name"]: comparison["candidate"] for comparison in calm["verdict"]["comparisons"]
    }
    steps = [str(child.record["step"]) for child in RunDir.all(folder / "runs") if child.record.get("parent") == run.id]
    assert sorted(steps) == ["1-collect", "1-evaluate-candidate", "1-evaluate-production", "1-train"], "each step is one run"
    moves = [move.kind for move in RegisteredModel(folder / "runs", "main").history("production")]
    assert moves == ["promote", "promote", "rollback", "promote"], "each promotion is made once"


@pytest.fixture
def served(folder: Path) -> Iterator[Serving]:
    """A real engine serves production, and keeps what it is asked."""
    keys = {
        "model": "production",
        "engine": "transformers",
        "capture": {},
        "auth": "none",
        "canary": {"share": 0.5},
        "resources.cpus": 2,
    }
    result = Serving(
        submit("serve", configure("serve", None, [f"{key}={json.dumps(value)}" for key, value in keys.items()])), folder
    )
    try:
        result.serves("main@1")
        yield result
    finally:
        list(cancel_runs([result.run.id]))
        until(lambda: final_outcome(result.run) is not None)


def said(address: str, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request, which does not fail."""
    answer = httpx.post(f"{address}/v1/{path}", json=body, timeout=HANG_SECONDS)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


def asked(address: str, prompt: str) -> str:
    """The id of the answer to a question."""
    messages = [{"role": "user", "content": prompt}]
    return str(said(address, "chat/completions", model="production", messages=messages, max_tokens=4)["id"])


@pytest.mark.soak(
    "a serving run, a training, two evaluations; test_loop.py plays them, test_serving.py updates a run that serves"
)
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("alone_with_ray")
def test_what_people_correct_is_learnt_and_served(folder: Path, served: Serving) -> None:
    """They go on asking while the loop goes round, and none of their requests fails."""
    questions = [chat["messages"] for chat in chats(40, turns=1)]
    for question, answer in questions:
        number = asked(served.address, question["content"])
        said(served.address, "feedback", answer_id=number, correction=answer["content"])
    canary = {"minutes": 0, "requests": ANSWERS}
    values = {"watch": served.run.id, "name": "fresh", "train": TRAIN, "gate": GATE, "canary": canary, "approve": False}
    run, count = submit("refresh", load_config(RefreshConfig, values)), itertools.count()
    until(lambda: asked(served.address, f"question {next(count)}") and final_outcome(run), Patience.CLUSTER, look_seconds=0.2)
    assert ended(run) is RunState.SUCCEEDED, final_outcome(run)
    (facts,) = read_rounds(run)
    assert facts["outcome"] == "promoted", facts["message"]
    assert facts["message"].endswith(f"{served.run.id} serves it")
    assert facts["data"]["corrected"] == len(questions)
    assert facts["canary"]["candidate"]["answers"] >= ANSWERS
    assert facts["canary"]["candidate"]["errors"] == 0
    served.serves("main@2")
    number = asked(served.address, "and now?")
    trace = until(lambda: trace_answer(number, folder / "runs"), Patience.STEP)
    assert trace["version"] == "main@2"
    assert [source["watch"] for source in feedback_behind(trace["lineage"], folder / "runs")] == [served.run.id]
