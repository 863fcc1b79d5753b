"""The newcomer's command, shortened: what it leaves behind is what the next tool relies on."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.process.kill import processes_of
from cluster.run.directory import RunDir
from jobs.formats.llama_cpp import LlamaCpp
from tests.patience import HANG_SECONDS, Patience, until


def ropewalk(*words: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "jobs.cli", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_quickstart_shows_the_whole_spine(tmp_path: Path) -> None:
    printed = ropewalk("quickstart", "qs", "--steps", "40", cwd=tmp_path)
    assert "rank 1 killed (SIGKILL)" in printed
    directory = tmp_path / "qs"
    runs = {run.record["job"]: run for run in RunDir.all(directory / "runs")}
    assert set(runs) == {"preprocess", "pretrain", "evaluate"}

    training = runs["pretrain"]
    assert training.attempts() == [1], "the group forms anew within the attempt"
    lost = [e for e in training.read_events() if e["event"] == "rank_lost"]
    assert any((e["rank"], e["exit_code"]) == (1, -9) for e in lost)
    assert {line["step"] for line in training.read_metrics() if "train/loss" in line} == set(range(1, 41))
    assert training.results()["step"] == 40
    assert list(training.wandb.rglob("*.wandb"))

    scores = runs["evaluate"].results()
    assert scores["loss"] < scores["unigram_loss"]
    assert (directory / "curves.png").stat().st_size > 10_000
    for job in runs:
        assert yaml.safe_load((directory / f"{job}.yaml").read_text())
    assert json.loads((directory / "data/manifest.json").read_text())["totals"]["train"]["documents"] > 300

    ropewalk("export", str(training.path), "model", cwd=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "model")) == 4096
    ropewalk("export", str(training.path), "model.gguf", "--format", "gguf:F32", cwd=tmp_path)
    with LlamaCpp(tmp_path / "model.gguf") as engine:  # it was compared with transformers before it stood there
        assert engine.vocabulary_size == 4096
    # the supervisor leaves last, after the outcome
    until(lambda: not processes_of(tmp_path), Patience.START, lambda: processes_of(tmp_path))
