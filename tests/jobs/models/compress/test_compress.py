"""A compression from end to end: every kind of variant, killed and resumed, its gate, its page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.scoring.open_model import open_model
from ropewalk.jobs.models.compress.artifacts import Artifact
from ropewalk.jobs.models.compress.build import Builder
from ropewalk.jobs.models.compress.config import CompressConfig, TimingConfig
from ropewalk.jobs.models.compress.layers import linears
from ropewalk.jobs.models.compress.report import pareto, read_table
from ropewalk.jobs.models.compress.timing import measure_timing
from tests.jobs.corpus import make_dataset
from tests.jobs.evaluation.evaluate.tasks import choice_task
from tests.jobs.launch import launch, log_of, make_run, start
from tests.jobs.tiny import tiny_model

RECOVER = {"recover": {"steps": 3, "batch": {"global_batch": 4, "micro_batch": 4}}}
VARIANTS: dict[str, list[Any]] = {
    "bf16": ["cast"],
    "f32": [{"gguf": {"type": "F32"}}],
    "q4": [{"gguf": {"type": "Q4_K"}}],
    "wanda": [{"wanda": {"sparsity": 0.5}}, RECOVER],
    "wanda-q8": [{"wanda": {"sparsity": 0.5}}, RECOVER, {"gguf": {"type": "Q8_0"}}],
    "2of4-w4": [{"magnitude": {"pattern": "2:4"}}, {"compressed_tensors": {"type": "int4"}}],
    "width": [{"prune": {"width": 0.75}}],
}
TIMES = {"rss", "load_seconds", "first_token_ms", "first_token_cpu_ms", "per_token_ms", "per_token_cpu_ms"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compress")
    make_dataset(root / "data")
    choice_task(root, 6, options=3)
    tiny_model(root / "model", hidden_size=64, intermediate_size=256, head_dim=32)
    return root


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        **{"model": str(folder / "model"), "data": str(folder / "data"), "seq_len": 32, "max_sequences": 6, "timing": None},
        **{"calibration": {"sequences": 4}, "variants": VARIANTS, **changes},
    }


def test_killed_at_any_variant_and_resumed_it_has_the_same_rows(home: Path, tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", config(home), "compress")
    table = launch(plain, 1)["table"]
    rows = {row["variant"]: row for row in table}
    assert list(rows) == ["dense", *VARIANTS]

    assert rows["dense"]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows["dense"]["more_bits_per_byte"] == pytest.approx(0, abs=1e-6)
    assert abs(rows["f32"]["more_bits_per_byte"]) < 0.01
    assert rows["f32"]["kl"] < 1e-3
    assert rows["q4"]["kl"] > rows["f32"]["kl"]
    assert {name: row["engine"] for name, row in rows.items() if row["engine"] == "llama.cpp"}.keys() == {"f32", "q4", "wanda-q8"}
    assert rows["wanda"]["zeros"] == rows["wanda-q8"]["zeros"] == pytest.approx(0.5, abs=0.01), "what is zero stays zero"
    assert rows["q4"]["bytes"] < rows["bf16"]["bytes"] < rows["dense"]["bytes"]
    wanda = AutoModelForCausalLM.from_pretrained(plain.path / rows["wanda"]["path"])
    assert any((linear.weight == 0).any() for _, linear in linears(wanda.model.layers))
    written = json.loads((plain.path / rows["2of4-w4"]["path"] / "config.json").read_text())["quantization_config"]
    assert (written["quant_method"], written["format"]) == ("compressed-tensors", "pack-quantized"), "vLLM's format"
    quantized = AutoModelForCausalLM.from_pretrained(plain.path / rows["2of4-w4"]["path"])
    quantized(input_ids=torch.tensor([[1, 2, 3]]))  # it is unpacked here
    for _, linear in linears(quantized.model.layers):
        assert ((linear.weight != 0).reshape(len(linear.weight), -1, 4).sum(-1) <= 2).all(), "2:4 is there after 4 bits"

    few = {name: VARIANTS[name] for name in ("q4", "wanda", "width")}
    killed = make_run(tmp_path / "killed", config(home, variants=few), "compress")
    ranks = start(killed, 1)
    ranks.until(lambda: len(measured(killed.path)) >= 3)
    ranks.kill()
    resumed = launch(killed, 1)["table"]
    names = [line["key"] for line in measured(killed.path)]
    assert sorted(names) == sorted(set(names)), "no variant is measured twice"
    assert resumed == [rows[name] for name in ("dense", *few)]
    assert not list(killed.path.rglob("dense.npy"))
    assert "Pareto" in (killed.path / "compress/report.html").read_text()
    assert read_table(killed)["table"] == resumed


def measured(run: Path) -> list[dict[str, Any]]:
    files = sorted((run / "ledger/table").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]


def test_the_gate_and_what_this_model_does_not_allow(home: Path, tmp_path: Path) -> None:
    strict = config(home, variants={"wanda": ["wanda"]}, require={"wanda/kl": "<= 0.0001"}, keep=False)
    refused = make_run(tmp_path, strict, "compress")
    start(refused, 1).wait()
    assert "the gate refuses" in log_of(refused)
    assert not list((refused.path / "variants").iterdir())
    run = make_run(tmp_path, config(home, variants={"cut": [{"prune": {"layers": 9}}]}), "compress")
    start(run, 1).wait()
    assert "variants: cut: layers: 9 of 2 cannot be kept" in log_of(run)
    assert not (run.path / "variants").exists()
    keys = CompressConfig.model_validate(config(home, variants={"ao": ["torchao"]}))
    with pytest.raises(ConfigError, match="variants: ao: torchao: is not installed"):
        Builder(config=keys, dense=open_model(str(home / "model")), recover=lambda model, methods, folder: model).check()


def test_speed_memory_and_task_scores_of_a_variant(home: Path, tmp_path: Path) -> None:
    keys = {"tasks": [str(home / "choice.yaml")], "require": {"f32/choice": ">= 0"}}
    run = make_run(tmp_path, config(home, variants={"f32": [{"gguf": {"type": "F32"}}]}, **keys), "compress")
    dense, row = launch(run, 1)["table"]
    items = [json.loads(line) for line in (home / "choice.jsonl").read_text().splitlines()]
    assert dense["scores"]["choice"]["acc"]["value"] == pytest.approx(accuracy(home / "model", items))
    assert row["scores"] == dense["scores"], "another engine, the same answers"
    assert {"value", "standard_error", "n", "hash"} == row["scores"]["choice"]["acc_norm"].keys()
    assert "choice, acc" in (run.path / "compress/report.html").read_text()
    assert any("log-probabilities within" in note for note in row["notes"])
    artifact = Artifact(engine="llama.cpp", path=run.path / row["path"], zeros=0.0)
    result = measure_timing(artifact, TimingConfig(prompt_tokens=16, new_tokens=4, repeats=1))
    assert result.keys() == TIMES
    assert all(value > 0 for value in result.values())
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"its timing ended with 1: .*cannot open it"):
        measure_timing(Artifact(engine="llama.cpp", path=tmp_path / "bad.gguf", zeros=0.0), TimingConfig())


def accuracy(model: Path, items: list[dict[str, Any]]) -> float:
    """The share of items whose answer is the likeliest option, option by option in transformers."""
    opened, right = open_model(str(model)), 0
    for item in items:
        values = []
        for choice in item["choices"]:
            context = opened.tokenizer(f"Q: {item['question']}\nA:")["input_ids"]
            ids = torch.tensor([[*context, *opened.tokenizer(f" {choice}")["input_ids"]]])
            each = opened.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            values.append(float(each[len(context) - 1 :].sum()))
        right += values.index(max(values)) == item["answer"]
    return right / len(items)


def test_the_front_is_what_no_other_variant_beats() -> None:
    rows = [
        {"variant": "a", "bytes": 4, "bits_per_byte": 1.0},
        {"variant": "b", "bytes": 2, "bits_per_byte": 1.5},
        {"variant": "worse", "bytes": 3, "bits_per_byte": 1.5},
        {"variant": "unknown", "bits_per_byte": 0.1},
    ]
    assert pareto(rows, "bytes") == ["a", "b"]
