"""From an answer back to code, data and feedback; from a document on to the models trained on it."""

import json
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store
from tests.fakes.token_files import write_dataset
from tests.jobs.models.registry.registered import judged, trained
from tests.jobs.serving.refresh.staged import NOW, captured, keep, serving_run
from tests.jobs.shell import Shell


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def shell(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    return Shell(capsys, monkeypatch, tmp_path)


@pytest.fixture
def answered(root: Path, tmp_path: Path) -> RunDir:
    """A model that was pretrained on a data set and finetuned on feedback, in production; it has answered."""
    write_dataset(tmp_path / "tokens", [5000], [600])
    base = trained(root, 8, name="base", job="pretrain", data=str(tmp_path / "tokens"))
    feedback = RunDir.create("collect", {"job": "collect", "config": {}}, root)
    (feedback.path / "data").mkdir()
    lines = feedback.path / "data/conversations.jsonl"
    lines.write_text(json.dumps({"id": "req-3", "messages": []}) + "\n")
    manifest = {"watch": "serve-old", "since": None, "until": 1.0, "counts": {"corrected": 1}}
    write_json(feedback.path / "data/manifest.json", manifest)
    tuned = trained(root, name="tuned", model={"run": base.id, "step": 8, "path": None}, data=str(lines))
    judged(root, tuned.id)
    promote(tuned.id, root=root)
    served = serving_run(root)
    keep(answers_store(served.path / FOLDER), [{**captured(3, "", ""), "alias": "production", "replica": "r1"}])
    return tuned


def test_an_answer_is_traced_to_its_data(shell: Shell, answered: RunDir, tmp_path: Path) -> None:
    output = shell("trace", "chat-3")
    assert f"model production was main@1 = {answered.id}@4" in output
    assert f"run {answered.id}@4 (finetune)" in output
    assert output.count("code c0ffee") == 2
    assert f"data {tmp_path / 'tokens'} sha256" in output
    assert "feedback of serve-old by collect-" in output
    assert "rated: rating up" in output
    answer = json.loads(shell("trace", "req-3", "--json"))
    assert answer["answer"]["lineage"]["bases"][0]["job"] == "pretrain"
    assert answer["answer"]["answer"]["time"] == NOW - 997
    assert answer["document"]["runs"][0]["run"] == answered.id, "what was answered then has been learnt since"


def test_a_document_is_traced_to_the_models_that_learnt_it(shell: Shell, answered: RunDir, tmp_path: Path) -> None:
    answer = json.loads(shell("trace", "d3", "--json"))["document"]
    places = [(document["data"], document["file"], document["split"], document["row"]) for document in answer["places"]]
    tokens = str(tmp_path / "tokens")
    assert places == [(tokens, "shards/part-00000.arrow", "train", 3), (tokens, "validation/part-00000.arrow", "validation", 3)]
    (base, learnt), (tuned, began) = [(run["run"], run["how"]) for run in answer["runs"]]
    assert (learnt, tuned, began) == ("was trained on it", answered.id, f"started from {base}")
    assert answer["versions"] == [{"version": "main@1", "run": answered.id, "aliases": ["production"]}]
    output = shell("trace", "d3")
    assert "version main@1 (production)" in output


def test_what_nobody_knows_is_a_mistake(shell: Shell, answered: RunDir) -> None:
    assert "neither an answer of a serving run under" in shell.mistake("trace", "chat-999")
