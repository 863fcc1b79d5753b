import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.results.readable import read_table
from ropewalk.jobs.training.loop.weights.export import export
from tests.jobs.alone import run_here
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import launch, log_of, make_run, pretrain_config, start

ONE_PASS = {"batch": {"global_batch": 8, "micro_batch": 8}}  # a step


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Path]:
    root = tmp_path_factory.mktemp("evaluate")
    data = make_dataset(root / "data")
    run = make_run(
        root / "runs",
        pretrain_config(data, steps=60, checkpoint={"every_steps": 20}, optim={"lr": 1e-2, "warmup_steps": 5}, **ONE_PASS),
    )
    launch(run, 1)
    return run, data


def evaluate(root: Path, ranks: int, **config: Any) -> dict[str, Any]:
    run = make_run(root, config, "evaluate")
    return run_here(run) if ranks == 1 else launch(run, ranks)


@pytest.mark.soak(
    "three ranks; test_tasks.py evaluates with one to three, among kills, and test_the_figures_are_what_transformers_gives"
    " has the figures"
)
def test_scores_a_run_alike_at_any_world_size(trained: tuple[RunDir, Path]) -> None:
    run, data = trained
    config = {"model": run.id, "data": str(data), "max_sequences": 11, "micro_batch": 2}
    first = evaluate(run.path.parent, 1, **config)
    two = evaluate(run.path.parent, 2, **config, shard="always")
    assert first["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert first["n"] == two["n"] == 11
    assert first["standard_error"] == pytest.approx(two["standard_error"], rel=1e-4)
    assert first["token_calibration"]["ece"] == pytest.approx(two["token_calibration"]["ece"], rel=1e-4)
    assert first["model_step"] == 60


def test_the_figures_are_what_transformers_gives(trained: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, data = trained
    model = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "model"), dtype=torch.float32)
    loader = TokenLoader([Source(str(data))], seq_len=32, seed=0, split="validation")
    n = loader.sequences
    tokens = torch.from_numpy(loader.in_order(0, n))
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(n, -1).double().mean(1)
    got = evaluate(run.path.parent, 1, model=str(tmp_path / "model"), data=str(data), seq_len=32)
    assert got["loss"] == pytest.approx(each.mean().item(), rel=1e-5)
    assert got["standard_error"] == pytest.approx(each.std().item() / math.sqrt(n), rel=1e-4)
    assert got["perplexity"] == pytest.approx(math.exp(got["loss"]))
    sure, likeliest = (values.numpy() for values in logits.softmax(-1).max(-1))
    right, number = likeliest == tokens[:, 1:].numpy(), np.minimum((sure * 10).astype(int), 9)
    ece = sum(abs(right[number == k].mean() - sure[number == k].mean()) * (number == k).sum() for k in set(number.ravel()))
    calibration = got["token_calibration"]
    assert calibration["ece"] == pytest.approx(ece / sure.size, rel=1e-3)
    assert (calibration["n"], sum(row["tokens"] for row in calibration["bins"])) == (sure.size, sure.size)
    assert 0 < calibration["standard_error"] < 0.1
    manifest = json.loads((data / "manifest.json").read_text())["totals"]["validation"]
    assert got["bits_per_byte"] == pytest.approx(got["loss"] / math.log(2) * manifest["tokens"] / manifest["bytes"])


def test_a_trained_model_beats_the_unigram_model(trained: tuple[RunDir, Path]) -> None:
    run, data = trained
    got = evaluate(run.path.parent, 1, model=run.id, data=str(data))
    train = TokenLoader([Source(str(data))], seq_len=32, seed=0)
    counts = 1 + np.bincount(train.in_order(0, train.sequences)[:, 1:].ravel(), minlength=257)
    scored = TokenLoader([Source(str(data))], seq_len=32, seed=0, split="validation")
    targets = scored.in_order(0, scored.sequences)[:, 1:].ravel()
    assert got["unigram_loss"] == pytest.approx(float(-np.log(counts / counts.sum())[targets].mean()))
    assert got["loss"] < got["unigram_loss"]


def test_samples_are_drawn_from_the_seed(trained: tuple[RunDir, Path]) -> None:
    run, data = trained
    generate = {"prompts": ["the rope", ""], "max_new_tokens": 5}
    config = {"model": run.id, "data": str(data), "max_sequences": 2, "generate": generate}
    runs = [make_run(run.path.parent, config, "evaluate") for _ in range(2)]
    first, two = (launch(item, ranks)["generations"] for ranks, item in enumerate(runs, 1))
    assert first == two
    assert [sample["prompt"] for sample in first] == ["the rope", ""]
    assert all(sample["text"] for sample in first)
    tables = {name: read_table(runs[1].path / f"tables/{name}.json") for name in ("generations", "worst-documents")}
    insert_term, worst = tables["generations"], tables["worst-documents"]
    assert insert_term is not None
    assert worst is not None
    assert [row[1:] for row in insert_term.rows] == [[sample["prompt"], sample["text"]] for sample in two]
    losses = [row[1] for row in worst.rows]
    assert losses == sorted(losses, reverse=True)
    assert all(row[2] for row in worst.rows)


def test_export_opens_in_transformers_with_its_tokenizer(trained: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, _ = trained
    model = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer("the").input_ids == list(b"the")
    half = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "half", dtype="bfloat16"), dtype="auto")
    assert torch.equal(half.lm_head.weight, model.lm_head.weight.to(torch.bfloat16))
    older = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "older", step=40))
    assert not torch.equal(older.lm_head.weight, model.lm_head.weight)
    with pytest.raises(ConfigError, match="is not empty; name a new one"):
        export(run, tmp_path / "model")
    with pytest.raises(CheckpointError, match="step 7"):
        export(run, tmp_path / "none", step=7)


def test_a_run_is_exported_and_scored_without_its_data(tmp_path: Path) -> None:
    data, other = make_dataset(tmp_path / "data"), make_dataset(tmp_path / "other")
    run = make_run(tmp_path / "runs", pretrain_config(data, steps=2))
    launch(run, 1)
    shutil.rmtree(data)
    export(run, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("the").input_ids == list(b"the")
    assert evaluate(run.path.parent, 1, model=run.id, data=str(other))["model_step"] == 2
    shutil.rmtree(run.tokenizer)
    with pytest.raises(CheckpointError, match="tokenizer: is missing"):
        export(run, tmp_path / "again")


def test_a_run_that_trains_nothing_has_no_model(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"model": "x", "data": "y"}, "evaluate")
    with pytest.raises(ConfigError, match="this evaluate run has no model"):
        export(run, tmp_path / "model")


def test_latest_means_the_newest_run_that_trains(trained: tuple[RunDir, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = trained
    make_run(run.path.parent, {"model": run.id, "data": str(data)}, "evaluate")
    monkeypatch.setenv("ROPEWALK_RUNS", str(run.path.parent))
    assert load_config(EvaluateConfig, {"model": "latest", "data": str(data)}).model == run.id  # type: ignore[attr-defined]


def test_what_is_neither_a_run_nor_a_model_is_named(tmp_path: Path) -> None:
    config = load_config(EvaluateConfig, {"model": "nowhere", "data": str(tmp_path)})
    with pytest.raises(ConfigError, match="'nowhere' is neither"):
        config.preflight()


def test_a_model_of_another_vocabulary_is_refused(trained: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, _ = trained
    other = make_dataset(tmp_path / "other", vocabulary=5000)
    bad = make_run(run.path.parent, {"model": run.id, "data": str(other)}, "evaluate")
    assert start(bad, 1).wait() == [42]
    assert "vocabulary has 257 tokens, the data set's tokenizer 5000" in log_of(bad)
