"""Documents → data set → model → scores, with real jobs, sidecars and wandb-core: one graph, though the training is killed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.process.kill import end, processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.job import config_of_run, step_runs
from ropewalk.jobs.runs.mirror.mirror import send_rest
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.submit import submit
from tests.fakes.wandb_server import WandbServer
from tests.jobs.corpus import WORDS
from tests.jobs.launch import TINY
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[4]
KILLS, STEPS = 3, 400

pytestmark = pytest.mark.soak("a minute and a half; make test runs test_relay.py and test_pipeline.py")


@pytest.fixture
def folder(wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # its own process ends before all others that have to do with this folder
    end(processes_of(tmp_path))
    until(lambda: not processes_of(tmp_path), Patience.START)


def newest_step(run: RunDir) -> int:
    return max((line["step"] for line in run.read_metrics()), default=0)


def of_kind(server: WandbServer, kind: str, names: list[str]) -> list[str]:
    """Those of these artifacts; a table that people read is one too."""
    return [name for name in names if server.artifacts[name]["type"] == kind]


def test_the_life_of_a_model_is_one_graph_though_its_training_is_killed(wandb_server: WandbServer, folder: Path) -> None:
    lines = [json.dumps({"text": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(30))}) for i in range(300)]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    tokens = {
        "input": ["docs.jsonl"],
        "output": "out/tokens",
        "tokenizer": {"train": 300},
        "validation_fraction": 0.1,
        "actors": 1,
    }
    training = {"model": {"config": TINY}, "seq_len": 32, "steps": STEPS, "batch": {"global_batch": 4, "micro_batch": 2}}
    training |= {"checkpoint": {"every_steps": 20}, "validation": {"every_steps": 100}}
    steps = {
        "tokens": {"job": "preprocess", "config": tokens},
        "model": {"job": "pretrain", "config": training, "set": {"data": "tokens", "optim.lr": 0.01}},
        "score": {"job": "evaluate", "config": {"model": "model", "data": "tokens", "max_sequences": 3}},
    }
    pipeline = submit("pipeline", load_config(PipelineConfig, {"name": "life", "steps": steps}))
    runs = step_runs(pipeline, config_of_run(pipeline))
    model, total = runs["model"], 0
    for _ in range(KILLS):
        until(lambda answer=total: newest_step(model) > answer + 30, Patience.RUN)
        total = newest_step(model)
        victims = [each for each in processes_of(model.path) if "ropewalk.cluster.agent" in " ".join(each.cmdline())]
        assert victims
        for each in victims:
            each.kill()
    until(lambda: final_outcome(pipeline) is not None, Patience.CLUSTER)
    outcome = final_outcome(pipeline)
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome.cause
    assert len(model.attempts()) == KILLS + 1
    for run in runs.values():
        send_rest(run)  # what a sidecar that was killed too has left
    (data_set,) = of_kind(wandb_server, "dataset", wandb_server.run(runs["tokens"].id).artifacts_made)
    (text,) = of_kind(wandb_server, "tokenizer", wandb_server.run(runs["tokens"].id).artifacts_made)
    # a sidecar that is killed between saying so and noting it says it again, which W&B takes as once
    assert set(wandb_server.run(model.id).used) == {data_set, text}
    created = of_kind(wandb_server, "model", wandb_server.run(model.id).artifacts_made)
    assert len(created) == len(set(created)), "no checkpoint twice"
    newest = wandb_server.artifacts[created[-1]]["aliases"]
    assert {"latest", f"step-{STEPS}"} <= set(newest)
    used = wandb_server.run(runs["score"].id).used
    assert created[-1] in used
    assert data_set in used
    history = [line["train/step"] for line in wandb_server.run(model.id).history if "train/loss" in line]
    assert history == list(range(1, STEPS + 1)), "every step once, in order"
