"""The newcomer's command, shortened: what it leaves behind is what the next tool relies on."""

import glob
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.cli import quickstart
from ropewalk.jobs.inference.gguf.llama_cpp import LlamaCpp
from tests.jobs.shell import Shell
from tests.patience import HANG_SECONDS, Patience, until

VOCABULARY = 512
settings = quickstart.settings


def test_the_text_is_the_standard_library_and_nothing_else() -> None:
    standard = sysconfig.get_path("stdlib")
    paths = [path for pattern in quickstart.corpus() for path in glob.glob(pattern, recursive=True)]
    assert len(paths) > 300
    assert f"{standard}/pydoc_data/topics.py" in paths, "the documentation"
    assert not [path for path in paths if not path.startswith(f"{standard}/") or "-packages" in path]


def shorter(directory: Path, steps: int, gpus: int = 0) -> dict[str, dict[str, Any]]:
    """The newcomer's jobs with less to compute in each."""
    jobs = settings(directory, steps, gpus)
    jobs["preprocess"]["tokenizer"] = {"train": VOCABULARY, "sample_mib": 1}
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    jobs["pretrain"]["model"] = {"config": {"model_type": "llama", "max_position_embeddings": 256, **shape}}
    # enough to beat unigrams by 0.3 nats: with half the batch it was 0.01, and another kind of CPU rounds it away
    batch = {"global_batch": 32, "micro_batch": 8}
    jobs["pretrain"] |= {"seq_len": 64, "batch": batch, "optim": {**jobs["pretrain"]["optim"], "lr": 6e-3}}
    jobs["evaluate"] |= {"seq_len": 64, "max_sequences": 50}
    jobs["evaluate"]["generate"]["max_new_tokens"] = 10
    return jobs


def test_quickstart_shows_the_whole_spine(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "settings", shorter)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    printed = shell("quickstart", "qs", "--steps", "40")
    assert "rank 1 killed (SIGKILL)" in printed
    directory = tmp_path / "qs"
    assert f"export ROPEWALK_RUNS={directory}/runs\n  ropewalk ps --all" in printed
    runs = {run.record["job"]: run for run in RunDir.all(directory / "runs")}
    assert set(runs) == {"preprocess", "pretrain", "evaluate"}

    training = runs["pretrain"]
    assert training.attempts() == [1], "the group forms anew within the attempt"
    lost = [e for e in training.read_events() if e["event"] == "rank_lost"]
    assert any((e["rank"], e["exit_code"]) == (1, -9) for e in lost)
    assert {line["step"] for line in training.read_metrics() if "train/loss" in line} == set(range(1, 41))
    assert training.results()["step"] == 40

    scores = runs["evaluate"].results()
    assert scores["loss"] < scores["unigram_loss"]
    assert (directory / "curves.png").stat().st_size > 10_000
    for job in runs:
        assert yaml.safe_load((directory / f"{job}.yaml").read_text())
    assert json.loads((directory / "data/manifest.json").read_text())["totals"]["train"]["documents"] > 300

    exported = json.loads(shell("export", str(training.path), "model", "--json"))
    assert exported["run"] == training.id
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "model")) == VOCABULARY
    # the supervisor leaves last, after the outcome
    until(lambda: not processes_of(tmp_path), Patience.START, lambda: processes_of(tmp_path))


def test_it_tells_a_shell_how_to_find_the_command_and_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("activate", "ropewalk"):
        (tmp_path / ".venv/bin" / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("PATH", "/usr/bin")
    export = f"export ROPEWALK_RUNS='{tmp_path}/a b/runs'"
    assert quickstart.next_commands(tmp_path / "a b", set_root=True) == ["source .venv/bin/activate", export, "ropewalk ps --all"]
    monkeypatch.setenv("PATH", str(tmp_path / ".venv/bin"))
    assert quickstart.next_commands(tmp_path / "a b", set_root=False) == ["ropewalk ps --all"]


@pytest.mark.soak("a larger model and vocabulary; make test runs test_quickstart_shows_the_whole_spine with 512 tokens")
def test_the_newcomers_command_as_it_is(tmp_path: Path, shell: Shell) -> None:
    command = [sys.executable, "-m", "ropewalk.jobs.cli", "quickstart", "qs", "--steps", "40"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "rank 1 killed (SIGKILL)" in done.stdout
    (scored,) = (run for run in RunDir.all(tmp_path / "qs/runs") if run.record["job"] == "evaluate")
    assert scored.results()["loss"] < scored.results()["unigram_loss"]
    training = str(next(run.path for run in RunDir.all(tmp_path / "qs/runs") if run.record["job"] == "pretrain"))
    exported = json.loads(shell("export", training, "made/model.gguf", "--format", "gguf:F32", "--json"))
    assert (exported["path"], exported["format"]) == ("made/model.gguf", "gguf:F32")
    with LlamaCpp(tmp_path / "made/model.gguf") as engine:  # it was compared with transformers before it stood there
        assert engine.vocabulary_size == 4096
    until(lambda: not processes_of(tmp_path), Patience.START, lambda: processes_of(tmp_path))
