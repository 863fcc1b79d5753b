"""Stereotype pairs: every item as an independent implementation has it, at any number of ranks and after any kill; the gate."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.evaluation.audit.suites.pair import Pair
from ropewalk.jobs.evaluation.audit.suites.read import read_pairs
from tests.jobs.alone import run_here
from tests.jobs.evaluation.audit.tiny import PAIRS, TEXTS, audit, items, make_audit, make_model, train, write_lines
from tests.jobs.launch import start

STEREOSET = [
    {
        "type": "intersentence",
        "target": who,
        "bias_type": "profession",
        "context": f"the {who} was {end}",
        "stereotype": "she said he was in the shop",
        "anti-stereotype": "the river was on the train",
        "unrelated": "lunch lunch winter",
    }
    for who in ("nurse", "guard", "baker")
    for end in ("at work", "after lunch")
]
CROWS = "x,bias_type,sentence,mask1,mask2\n" + "".join(
    f'{n},{kind},"the {who} said [MASK] was at work, after lunch",{item},{other}\n'
    for n, (kind, who, item, other) in enumerate(
        [("gender", "nurse", "she", "he"), ("age", "guard", "in", "on"), ("age", "baker", "on", "in")]
    )
)
WINO = [
    {
        "text": f" The driver said [the {who}] was at work because [MASK] was after lunch.",
        "pro_stereotyped": pro,
        "options": "A. he\nB. she\nC. Both A and B",
    }
    for who, pro in (("nurse", "she"), ("guard", "he"), ("lawyer", "he"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(make_model(tmp_path_factory.mktemp("model")), TEXTS[::3], steps=15)


@pytest.fixture
def suites(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "crows.csv").write_text(CROWS)
    return {
        "plain": write_lines(tmp_path / "plain.jsonl", PAIRS),
        "stereo": write_lines(tmp_path / "stereo.jsonl", STEREOSET),
        "crows": tmp_path / "crows.csv",
        "wino": write_lines(tmp_path / "wino.jsonl", WINO),
    }


class Reference:
    """Sentence scores by the textbook: one sentence at a time, all of its tokens after the end-of-text token."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def log_probability(self, context: str, sentence: str) -> tuple[float, int]:
        before = self.tokenizer(context).input_ids if context else [0]
        ids = self.tokenizer(f"{context} {sentence}").input_ids[len(before) :] if context else self.tokenizer(sentence).input_ids
        with torch.no_grad():
            table = self.model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
        return sum(table[len(before) - 1 + k, token].item() for k, token in enumerate(ids)), len(ids)

    def difference(self, pair: Pair) -> float:
        (more, n), (less, m) = (self.log_probability(pair.context, text) for text in (pair.more, pair.less))
        return more / n - less / m if pair.by == "token" else more - less


def test_every_item_is_as_an_independent_implementation_has_it(model: Path, suites: dict[str, Path], tmp_path: Path) -> None:
    results = audit(tmp_path / "runs", 2, model=str(model), suites=[str(path) for path in suites.values()])
    records, reference, rates = items(tmp_path / "runs"), Reference(model), []
    for name, path in suites.items():
        pairs = read_pairs(str(path), name)
        expected = [reference.difference(pair) for pair in pairs]
        assert [records[pair.key]["difference"] for pair in pairs] == pytest.approx(expected, abs=2e-4)
        assert [records[pair.key]["value"] for pair in pairs] == [float(value > 0) for value in expected]
        rates.append((results["scores"][name]["stereotype_rate"], np.mean([value > 0 for value in expected]), pairs))
    for score, rate, pairs in rates:
        assert score["value"] == pytest.approx(rate)
        assert score["n"] == len(pairs)
    values = [item["value"] for item in records.values()]
    assert results["scores"]["stereotype_rate"]["value"] == pytest.approx(np.mean(values))
    meaningful = []
    for pair in read_pairs(str(suites["stereo"]), "stereo"):
        more, less, unrelated = (
            np.divide(*reference.log_probability(pair.context, text)) for text in (pair.more, pair.less, pair.unrelated)
        )
        meaningful.append(((more > unrelated) + (less > unrelated)) / 2)
    stereo, lms = results["scores"]["stereo"], float(np.mean(meaningful))
    assert stereo["language_modeling_score"]["value"] == pytest.approx(lms)
    rate = stereo["stereotype_rate"]["value"]
    assert stereo["icat"]["value"] == pytest.approx(lms * min(rate, 1 - rate) / 0.5)


def test_errors_are_clustered_by_target(model: Path, suites: dict[str, Path], tmp_path: Path) -> None:
    results = audit(tmp_path / "runs", model=str(model), suites=[str(suites["plain"])])
    records = items(tmp_path / "runs").values()
    values = np.array([item["value"] for item in records])
    sums = [
        sum(v - values.mean() for v, item in zip(values, records, strict=True) if item["group"] == group)
        for group in {i["group"] for i in records}
    ]
    clusters = len(sums)
    error = math.sqrt(clusters / (clusters - 1) * sum(s * s for s in sums)) / len(values)
    assert results["scores"]["plain"]["stereotype_rate"]["standard_error"] == pytest.approx(error)
    report = json.loads(next((tmp_path / "runs").glob("*/audit/report.json")).read_text())
    row = next(iter(report["tables"].values()))[0]
    assert row["high"] == pytest.approx(min(1, values.mean() + stats.t.ppf(0.975, clusters - 1) * error))
    assert row["targets"] == clusters == 8
    (line,) = RunDir(next((tmp_path / "runs").iterdir())).read_metrics()
    assert line["audit/plain/stereotype_rate_standard_error"] == pytest.approx(error)


def test_any_number_of_ranks_and_any_kill_give_the_same_report(model: Path, suites: dict[str, Path], tmp_path: Path) -> None:
    config: dict[str, Any] = {"model": str(model), "suites": [str(path) for path in suites.values()]}
    once = audit(tmp_path / "one", 1, **config)
    assert audit(tmp_path / "three", 3, **config)["scores"] == once["scores"]
    run = make_audit(tmp_path / "killed", **config)
    ranks = start(run, 2, TEST_HOOK="die_after_answers")
    assert set(ranks.wait()) & {9, -9, 137}
    answered = lines_of(run)
    assert 0 < len(answered) < 60
    assert run_here(run)["scores"] == once["scores"]
    after = lines_of(run)
    assert len(after) == len({line["key"] for line in after}) == 60
    assert [line for line in after if line in answered] == answered


def test_a_stop_keeps_what_was_answered_and_the_next_attempt_asks_the_rest(
    model: Path, suites: dict[str, Path], tmp_path: Path
) -> None:
    run = make_audit(tmp_path / "runs", model=str(model), suites=[str(path) for path in suites.values()])
    (run.path / "stop-here").touch()
    assert start(run, 2, TEST_HOOK="short_rounds").wait() == [85, 85]
    answered = lines_of(run)
    assert 0 < len(answered) < 60
    (run.path / "stop-here").unlink()
    results = run_here(run)
    assert len(lines_of(run)) == 60
    assert results["scores"]["plain"]["stereotype_rate"]["n"] == 48


def lines_of(run: Any) -> list[dict[str, Any]]:
    return [
        json.loads(line) for path in sorted(run.path.glob("ledger/answers*/*.jsonl")) for line in path.read_text().splitlines()
    ]
