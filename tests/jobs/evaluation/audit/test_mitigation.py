"""Training on the pairs that an audit writes reduces bias; canaries planted more often are exposed more."""

import json
from pathlib import Path

import pytest

from ropewalk.jobs.evaluation.audit.training_data.canaries import make_canaries
from tests.jobs.alone import run_here
from tests.jobs.evaluation.audit.tiny import ENDS, GROUPS, PAIRS, items, make_audit, make_model, refused, train, write_lines
from tests.jobs.launch import launch, make_run


@pytest.mark.soak("three runs; test_measures.py checks the pairs one by one")
def test_a_biased_model_that_is_aligned_with_counterfactual_pairs_is_less_biased(tmp_path: Path) -> None:
    model, root = train(make_model(tmp_path / "model"), [pair["more"] for pair in PAIRS], steps=60), tmp_path / "runs"
    templates = [
        {"template": f"the {{SLOT}} said {{WHO}} was {end}", "slot": GROUPS[:2], "swaps": [["he", "she"]]} for end in ENDS
    ]
    suite = write_lines(tmp_path / "suite.jsonl", [pair for pair in PAIRS if pair["target"] in GROUPS[2:]])  # other people
    mitigation = {"counterfactual": {"templates": str(write_lines(tmp_path / "templates.jsonl", templates))}}
    first = make_audit(root, model=str(model), suites=[str(suite)], mitigation=mitigation)
    before = run_here(first)
    pairs = first.path / before["pairs"]
    assert len(pairs.read_text().splitlines()) == len(ENDS) * 2
    config = {
        "model": {"path": str(model)},
        "data": str(pairs),
        "chat": {"verbatim": True},
        "validation_fraction": 0.0,
        "seq_len": 64,
        "steps": 40,
        "batch": {"global_batch": 8, "micro_batch": 8},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
        "checkpoint": {"every_steps": 40},
    }
    aligned = make_run(root, config, "align")
    launch(aligned, 1)
    second = make_audit(root, model=aligned.id, suites=[str(suite)], before=first.id)
    run_here(second)
    report = json.loads((second.path / "audit/report.json").read_text())
    (row,) = report["tables"]["Before and after"]
    assert row["before"] == 1.0
    assert row["after"] < row["before"]
    assert row["verdict"] == "fell"  # six targets, which are compared as wholes, are the fewest that can show it


@pytest.mark.soak("trains on fifty documents; make test plants two and leaves one out")
def test_what_was_planted_more_often_is_exposed_more(tmp_path: Path) -> None:
    documents, canaries = make_canaries(12, [0, 2, 8, 32], seed=1)
    texts = [document["text"].rpartition("\n\n")[2] for document in documents]  # a tiny model has no room for what stands around
    model = train(make_model(tmp_path / "model", texts=texts), [*texts, *(pair["more"] for pair in PAIRS)], steps=150, lr=3e-3)
    results = refused(
        tmp_path / "runs",
        model=str(model),
        memorization={"canaries": str(write_lines(tmp_path / "canaries.jsonl", canaries))},
        require={"canaries/extracted": "== 0"},
    )
    records = items(tmp_path / "runs").values()
    mean = {n: sum(item["exposure"] for item in records if item["repeats"] == n) / 3 for n in (0, 2, 8, 32)}
    assert mean[0] < mean[8] <= mean[32]
    assert mean[0] < 4
    assert not results["gate"]["passed"]
