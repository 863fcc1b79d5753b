"""Cards: what validators say of them, that no field is empty, and that nothing of the machine leaks into them."""

import json
import re
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import DatasetCard, ModelCard
from transformers import LlamaConfig, LlamaForCausalLM

import ropewalk.jobs.models.cards.export
from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import InputRecord, TokenizerRecord
from ropewalk.jobs.models.cards.data_card import data_card
from ropewalk.jobs.models.cards.data_facts import read_data_facts
from ropewalk.jobs.models.cards.public import public
from ropewalk.jobs.models.cards.write import write_data_cards, write_model_cards
from ropewalk.jobs.results.readable import pictures, read_table
from ropewalk.jobs.training.loop.architecture.model_record import ModelRecord, Weights
from tests.fakes.documents import configure, make, some_documents, write_lines
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, launch, make_run, pretrain_config

SECRET = "hunter2-secret"


@pytest.fixture
def exported(tmp_path: Path) -> tuple[RunDir, Path]:
    """A run that was trained, evaluated and audited, as far as its files tell, and its exported weights."""
    root = tmp_path / "runs"
    data = make_dataset(tmp_path / "private" / "data")
    config = pretrain_config(data, wandb={"project": f"https://me:{SECRET}@host/x"}, api_key=SECRET)
    run = make_run(root, config)
    number = run.begin_attempt()
    write_json(run.attempt_dir(number) / "result.json", {"step": 8, "train/loss": 1.5})
    directory = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**{**TINY, "vocab_size": 300})).save_pretrained(directory)
    score = {"value": 0.7, "standard_error": 0.01, "n": 900, "hash": "xxh3:1"}
    gate = {"passed": False, "failed": ["stereotype_rate is 0.7"]}
    finished(root, "audit", run, {"scores": {"stereotype_rate": score, "crows": {"stereotype_rate": score}}, "gate": gate})
    finished(root, "evaluate", run, {"loss": 2.5, "bits_per_byte": 1.1, "standard_error": 0.1, "n": 7})
    finished(root, "evaluate", make_run(root, config), {"loss": 12345.5})
    return run, directory


def finished(root: Path, job: str, model: RunDir, results: dict[str, Any]) -> None:
    run = make_run(root, {"model": model.id, "data": "/private/x"}, job)
    write_json(run.attempt_dir(run.begin_attempt()) / "result.json", results)


def test_a_model_card_has_metadata_that_the_hub_reads_and_every_section_filled(exported: tuple[RunDir, Path]) -> None:
    run, directory = exported
    write_model_cards(run, directory, 8)
    card = ModelCard.load(directory / "README.md")
    assert card.data.library_name == "transformers"
    results = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["held-out text", "stereotype_rate"] == 0.7
    assert results["crows", "stereotype_rate"] == 0.7
    assert results["held-out text", "loss"] == 2.5
    text = (directory / "README.md").read_text()
    assert "stereotype_rate is 0.7" in text
    assert "12345" not in text  # of another model
    sections = re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]
    assert len(sections) == 8
    assert all(section.strip() for section in sections)
    assert not re.search(r"\|\s*\|$", text.replace("| | |", ""), flags=re.MULTILINE)
    assert no_empty(yaml.safe_load(text.split("---")[1]))


def test_a_bill_of_materials_is_valid_and_names_weights_data_and_programs(exported: tuple[RunDir, Path]) -> None:
    run, directory = exported
    write_model_cards(run, directory, 8)
    text = (directory / "ml-bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    model = bill["metadata"]["component"]
    assert re.fullmatch(r"[0-9a-f]{64}", model["hashes"][0]["content"])
    assert {metric["slice"] for metric in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]} >= {
        "stereotype_rate",
        "crows/stereotype_rate",
        "loss",
    }
    kinds = {component["type"] for component in bill["components"]}
    assert kinds >= {"data", "library", "platform"}
    assert {component.get("purl") for component in bill["components"]} >= {
        f"pkg:pypi/torch@{torch.__version__}".replace("+", "%2B")
    }
    assert no_empty(bill)


def test_no_card_tells_a_secret_or_a_path_of_the_machine(exported: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, directory = exported
    write_model_cards(run, directory, 8)
    data = tmp_path / "private" / "data"
    write_data_cards(StoragePath(data))
    for path in (
        directory / "README.md",
        directory / "ml-bom.json",
        data / "report/data-card.md",
        data / "report/croissant.json",
    ):
        text = path.read_text()
        assert SECRET not in text
        assert str(tmp_path) not in text
        assert "/private" not in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib.*", "ignore::DeprecationWarning:mlcroissant.*")
def test_a_data_set_has_a_card_and_a_valid_croissant_file(tmp_path: Path) -> None:
    import mlcroissant

    data = make_dataset(tmp_path / "data")
    write_data_cards(StoragePath(data), "2026-01-31")
    loaded = mlcroissant.Dataset(jsonld=data / "report/croissant.json")
    assert not loaded.metadata.ctx.issues.errors
    assert not loaded.metadata.ctx.issues.warnings
    assert {record.id for record in loaded.metadata.record_sets} == {"train", "validation"}
    assert no_empty(json.loads((data / "report/croissant.json").read_text()))
    card = DatasetCard.load(data / "report/data-card.md")
    assert card.data.configs[0]["data_files"][0] == {"split": "train", "path": "shards/*.arrow"}
    sections = re.split(r"^## .*$", (data / "report/data-card.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) == 10
    assert all(section.strip() for section in sections)
    before = (data / "report/croissant.json").read_bytes()
    write_data_cards(StoragePath(data))  # the day of publication stays that of the content
    assert (data / "report/croissant.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib.*", "ignore::DeprecationWarning:mlcroissant.*")
def test_preprocess_writes_the_cards_of_what_it_made(tmp_path: Path) -> None:
    import mlcroissant

    from ropewalk.jobs.preprocess.job import main

    write_lines(tmp_path / "private/books.jsonl", [*some_documents(60), b"not json"])
    keys = {"filters": [{"min_words": {"words": 5}}]}
    make(tmp_path / "private", tmp_path / "set", **keys)  # a complete data set needs no Ray
    config = configure(tmp_path / "private", tmp_path / "set", **keys)
    run = RunDir.create(
        "preprocess", {"config": config.model_dump(mode="json"), "resources": {"cpus": 1}}, root=tmp_path / "runs"
    )
    main(JobContext(run=run, attempt=run.begin_attempt()))
    assert {path.name for path in pictures(run.path)} == {"dropped.png", "lengths.png", "sources.png"}
    table = read_table(run.path / "tables/documents.json")
    assert table is not None
    assert {"kept", "invalid_json"} <= {row[0] for row in table.rows}
    loaded = mlcroissant.Dataset(jsonld=tmp_path / "set/report/croissant.json")
    assert not loaded.metadata.ctx.issues.errors
    assert no_empty(json.loads((tmp_path / "set/report/croissant.json").read_text()))
    card = (tmp_path / "set/report/data-card.md").read_text()
    for word in ("books.jsonl", "invalid_json", "min_words", "pii` was not set"):
        assert word in card
    assert str(tmp_path) not in card


def test_an_exported_model_has_its_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs", pretrain_config(make_dataset(tmp_path / "data"), steps=2))
    launch(run, 1)
    monkeypatch.setattr(sys, "argv", ["ropewalk.jobs.models.cards.export", str(run.path), str(tmp_path / "model")])
    ropewalk.jobs.models.cards.export.main()  # what a machine that does not see the run has another one call
    (tmp_path / "ordinary").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "ordinary", *(tmp_path / "model").iterdir()]}
    assert len(modes) == 1, "the weights have those of other new files"
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names >= {"README.md", "ml-bom.json", "model.safetensors", "config.json", "tokenizer.json"}
    text = (tmp_path / "model/README.md").read_text()
    assert "step 2" in text
    assert "LlamaForCausalLM" in text
    assert "`data`: 200 documents" in text
    bill = (tmp_path / "model/ml-bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None


@pytest.mark.parametrize(
    ("uncommitted", "message"), [(0, "| code | commit 1f2e |"), (2, "| code | commit 1f2e with 2 uncommitted files |")]
)
def test_a_commit_that_was_not_all_of_the_code_is_not_told_as_if(tmp_path: Path, uncommitted: int, message: str) -> None:
    new_run = make_run(tmp_path / "runs", pretrain_config(tmp_path / "gone"))
    run = RunDir(new_run.path, record={**new_run.record, "code": {"commit": "1f2e", "uncommitted": uncommitted}})
    directory = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**{**TINY, "vocab_size": 300})).save_pretrained(directory)
    write_model_cards(run, directory, None)
    assert message in (directory / "README.md").read_text()


def test_a_data_card_lists_the_largest_inputs_and_sums_the_others(tmp_path: Path) -> None:
    for number in range(50):
        write_lines(tmp_path / f"raw/{number:02d}.jsonl", some_documents(3 + number, seed=number))
    manifest = make(tmp_path / "raw", tmp_path / "set")
    card = data_card(read_data_facts(StoragePath(tmp_path / "set")))
    lines = card.split("## Sources")[1].split("## Processing")[0].strip().splitlines()[2:]
    assert len(lines) == 21
    assert lines[0].startswith("| 49.jsonl |")
    name, size, _, documents, rejected = (cell.strip() for cell in lines[-1].strip("|").split("|"))
    rest = sorted(manifest.inputs, key=lambda file: -file.size)[20:]
    sums = [f"{sum(getattr(file, key) for file in rest):,}" for key in ("size", "documents", "rejected")]
    assert [name, size, documents, rejected] == ["30 others", *sums]


def test_what_is_no_data_set_gets_no_card(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        write_data_cards(StoragePath(tmp_path))
    assert not (tmp_path / "report").exists()


def test_a_card_names_conversations_base_model_and_its_licence(tmp_path: Path) -> None:
    root, base, directory = tmp_path / "runs", tmp_path / "SmolBase", tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**{**TINY, "vocab_size": 300})).save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base model\n")
    make_dataset(root / ".prepared/0123")
    first = make_run(root, {"model": {"path": str(base)}, "data": [str(tmp_path / "private/chat.jsonl.zst")]}, "finetune")
    write_json(first.path / "data.json", {"path": "../.prepared/0123", "hash": "xxh3:0"})
    pairs = write_lines(tmp_path / "private/pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    second = make_run(root, {"model": {"run": first.id}, "data": str(pairs)}, "align")
    tokenizer = TokenizerRecord(name="t", hash="h", vocabulary=300, end_of_document=0, version="0")
    for run, weights in ((first, Weights(path=str(base))), (second, Weights(run=first.id, step=3))):
        record = ModelRecord(fingerprint={"model_type": "llama"}, seq_len=8, tokenizer=tokenizer, weights=weights)
        write_json(run.model_record, record.model_dump(mode="json"))
    shutil.copytree(base, directory)
    for run in (first, second):
        write_model_cards(run, directory, 5)
        text, bill = (directory / "README.md").read_text(), (directory / "ml-bom.json").read_text()
        assert ModelCard(text).data.license == "apache-2.0"
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
        assert "private" not in text + bill
        expected = (
            "`chat.jsonl.zst`: 200 documents"
            if run is first
            else f"`pairs.jsonl`: a file of {pairs.stat().st_size} bytes, SHA-256"
        )
        assert expected in text
        assert ("`SmolBase`" if run is first else f"`{first.id}` ← `SmolBase`") in text
    record = record.model_copy(update={"head": "reward"})
    write_json(second.model_record, record.model_dump(mode="json"))
    write_model_cards(second, directory, 5)
    assert ModelCard.load(directory / "README.md").data.pipeline_tag == "text-classification"
    assert "AutoModelForSequenceClassification" in (directory / "README.md").read_text()
    second.event("exported", step=5, directory=str(directory))
    scored = make_run(root, {"model": str(directory)}, "evaluate")
    write_json(scored.attempt_dir(scored.begin_attempt()) / "result.json", {"loss": 1.25, "n": 3})
    write_model_cards(second, directory, 5)
    assert "| loss | 1.25 |" in (directory / "README.md").read_text()


def test_a_run_without_data_or_scores_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", pretrain_config(tmp_path / "gone"))
    directory = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**{**TINY, "vocab_size": 300})).save_pretrained(directory)
    write_model_cards(run, directory, None)
    text = (directory / "README.md").read_text()
    assert "not a prepared data set, or no longer available" in text
    assert "This model was not measured" in text
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((directory / "ml-bom.json").read_text()) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/data.jsonl", "data.jsonl"),
        ("s3://bucket/deep/set", "set"),
        ("read /a/b/c and ~/d/e.txt", "read c and e.txt"),
        ("HuggingFaceTB/SmolLM", "HuggingFaceTB/SmolLM"),
        ("1/2", "1/2"),
        ({"token": "abc", "n": 3}, {"token": "***", "n": 3}),
        (["/x/y"], ["y"]),
    ],
)
def test_what_leaves_the_machine(value: Any, expected: Any) -> None:
    assert public(value) == expected


def no_empty(value: Any) -> bool:
    """Return True if no nested value is empty, apart from an empty list of dependencies."""
    if isinstance(value, dict):
        return bool(value) and all(no_empty(inner) for inner in value.values())
    if isinstance(value, list):
        return bool(value) and all(no_empty(inner) for inner in value)
    return value not in (None, "")


FOREIGN = "[click](http://evil.example/x) <script>a</script> www.evil.example `b` | c\n| d |"


def test_foreign_text_makes_no_links_html_or_cells(exported: tuple[RunDir, Path], tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    run, directory = exported
    base = tmp_path / "base | [x](www.evil.example)"
    base.mkdir()
    (base / "README.md").write_text(f"---\nlicense: {json.dumps(FOREIGN)}\n---\n")
    record = ModelRecord(
        fingerprint={},
        seq_len=8,
        tokenizer=TokenizerRecord(name="t", hash="h", vocabulary=300, end_of_document=0, version="0"),
        weights=Weights(path=str(base)),
    )
    write_json(run.model_record, record.model_dump(mode="json"))
    score = {"value": 0.7, "standard_error": 0.01, "n": 900, "hash": "xxh3:1"}
    gate = {"passed": False, "failed": [FOREIGN]}
    finished(run.path.parent, "audit", run, {"scores": {FOREIGN: score}, "gate": gate})
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", {**config, "architectures": [FOREIGN]})
    write_model_cards(run, directory, 8)
    facts = read_data_facts(StoragePath(tmp_path / "private/data"))
    (file, *_) = facts.manifest.inputs or [InputRecord(path="", size=1, checksum="c", documents=1, rejected=0)]
    manifest = facts.manifest.model_copy(update={"inputs": (file.model_copy(update={"path": FOREIGN}),)})
    cards = ((directory / "README.md").read_text(), data_card(replace(facts, manifest=manifest)))
    for card in cards:
        page = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
        assert "click" in page
        assert r"www\.evil" in card
        assert not re.search(r"<(a|script)\b", page)
        for table in re.findall("<table>.*?</table>", page, re.DOTALL):
            rows = [row.count("<t") for row in re.findall("<tr>.*?</tr>", table, re.DOTALL)]
            assert len(set(rows)) == 1
