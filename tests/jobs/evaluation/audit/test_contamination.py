"""Contamination: planted items are all found, with document and shard; nothing is found in disjoint text; damage is an error."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropewalk.datapipe.manifest import TokenizerRecord
from tests.fakes.token_files import write_manifest_of, write_shard
from tests.jobs.alone import run_here
from tests.jobs.corpus import END, make_dataset
from tests.jobs.evaluation.audit.tiny import audit, items, make_audit, make_model, write_lines
from tests.jobs.launch import log_of, make_run, start

WORDS = [f"{a}{b}" for a in ("ra", "lo", "mi", "te", "su", "ka", "po", "ne") for b in ("ban", "dor", "fel", "gim", "hus", "jor")]


def sentence(draw: random.Random, num_words: int = 20) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(num_words))


def write_data(folder: Path, shards: list[list[str]]) -> Path:
    """A data set of these documents, a byte a token."""
    make_dataset(folder, num_documents=8)  # for its tokenizer
    results = []
    for number, documents in enumerate(shards):
        name = f"shards/part-{number:05d}.arrow"
        tokens = [np.array([*text.encode(), END], np.uint16) for text in documents]
        ids = [f"doc-{number}-{row}" for row in range(len(documents))]
        text_bytes = sum(len(text.encode()) for text in documents)
        results.append(write_shard(folder, name, "train", tokens, ids=ids, text_bytes=text_bytes))
    tokenizer = TokenizerRecord(name="bytes", hash="xxh3:0", vocabulary=257, end_of_document=END, version="0")
    write_manifest_of(folder, results, tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def suites(tmp_path: Path, draw: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    pairs = [{"more": sentence(draw) + " she", "less": sentence(draw) + " he", "target": str(n % 5)} for n in range(20)]
    questions = [{"question": sentence(draw, 30), "choices": [sentence(draw, 3)], "label": 1} for _ in range(15)]
    suite, other = write_lines(tmp_path / "pairs.jsonl", pairs), write_lines(tmp_path / "boolq.jsonl", questions)
    return [*pairs, *questions], {
        "suites": [str(suite)],
        "contamination": {"data": str(tmp_path / "data"), "against": [str(other)]},
    }


def test_planted_items_are_all_found_where_they_lie_and_scores_told_apart(model: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    rows, config = suites(tmp_path, draw)
    shards = [[sentence(draw, 60) for _ in range(30)] for _ in range(3)]
    planted: dict[str, str] = {}
    for number, row in enumerate(rows[:10] + rows[20:27]):
        key = f"pairs:{number + 1}" if number < 10 else f"boolq:{number - 9}"
        text = row.get("more") or row["question"]
        arguments = text.split()
        if number % 2:
            arguments[7] = "changed"  # one word of thirteen may differ
        shard, document = number % 3, 3 + number
        shards[shard][document] = f"{sentence(draw)}. {' '.join(arguments).upper()}! {sentence(draw)}"
        planted[key] = f"doc-{shard}-{document}"
    write_data(tmp_path / "data", shards)
    results = audit(tmp_path / "runs", 2, model=str(model), **config)
    records = items(tmp_path / "runs")
    places = {
        key.removeprefix("contamination/"): item["places"] for key, item in records.items() if item["measure"] == "contamination"
    }
    assert len(places) == 35
    assert {key: [match["document"] for match in value] for key, value in places.items() if value} == {
        k: [v] for k, v in planted.items()
    }
    assert {match["shard"] for value in places.values() for match in value} == {
        f"data/shards/part-0000{n}.arrow" for n in range(3)
    }
    assert results["scores"]["contaminated"]["value"] == pytest.approx(17 / 35)
    assert results["scores"]["pairs"]["contaminated"]["value"] == 0.5
    assert results["scores"]["boolq"]["contaminated"]["value"] == pytest.approx(7 / 15)
    report = next((tmp_path / "runs").glob("*/audit/report.json")).read_text()
    assert "Scores on items that are in the training data, and on those that are not" in report


def test_nothing_is_found_in_disjoint_text(model: Path, tmp_path: Path) -> None:
    draw = random.Random(6)
    _, config = suites(tmp_path, draw)
    write_data(tmp_path / "data", [[sentence(draw, 200) for _ in range(100)] for _ in range(2)])
    results = audit(tmp_path / "runs", model=str(model), require={"contaminated": "== 0"}, **config)
    assert results["scores"]["contaminated"]["value"] == 0.0
    assert results["gate"]["passed"]


def test_a_damaged_shard_is_an_error_and_no_clean_bill(model: Path, tmp_path: Path) -> None:
    draw = random.Random(7)
    _, config = suites(tmp_path, draw)
    data = write_data(tmp_path / "data", [[sentence(draw, 60) for _ in range(5)]])
    raw = bytearray((data / "shards/part-00000.arrow").read_bytes())
    raw[len(raw) // 2] ^= 1
    (data / "shards/part-00000.arrow").write_bytes(raw)
    run = make_audit(tmp_path / "runs", model=str(model), **config)
    assert start(run, 1).wait() == [42]
    assert "part-00000.arrow: expected checksum" in log_of(run)


def evaluation(root: Path, model: Path, rows: list[dict[str, Any]]) -> str:
    """A finished run of evaluate, as far as its files tell."""
    run = make_run(root, {"model": str(model)}, "evaluate")
    write_lines(run.path / "evaluation/items.jsonl", rows)
    return run.id


def test_items_of_an_evaluation_are_searched_and_calibrated(model: Path, tmp_path: Path) -> None:
    draw = random.Random(8)
    questions, likelihoods = [sentence(draw, 20) for _ in range(4)], [(-1.0, -2.0), (-3.0, -1.0), (-1.0, -1.5), (-2.0, -1.9)]
    rows = [
        {
            "task": "boolq",
            "item": number,
            "hash": "h",
            "prompt": f"an example of it\n\n{question}?",
            "options": [" yes", " no"],
            "target": number % 2,
            "answers": [[value, False] for value in values],
            "values": {"acc": float(values[number % 2] == max(values))},
        }
        for number, (question, values) in enumerate(zip(questions, likelihoods, strict=True))
    ]
    write_data(tmp_path / "data", [[sentence(draw, 60), f"{sentence(draw)} {questions[2]} {sentence(draw)}"]])
    name = evaluation(tmp_path / "runs", model, rows)
    run = make_audit(tmp_path / "runs", model=str(model), evaluation=name, contamination={"data": str(tmp_path / "data")})
    results = run_here(run)
    scores = results["scores"]["evaluation"]["boolq"]
    assert scores["contaminated"]["value"] == 0.25
    sure = [1 / (1 + math.exp(-abs(a - b))) for a, b in likelihoods]
    right = [1.0, 1.0, 1.0, 1.0]
    bins: dict[int, list[int]] = {}
    for number, value in enumerate(sure):
        bins.setdefault(int(value * 10), []).append(number)
    ece = sum(abs(sum(right[n] - sure[n] for n in part)) for part in bins.values()) / 4
    assert scores["ece"]["value"] == pytest.approx(ece)
    assert scores["brier"]["value"] == pytest.approx(sum(2 * (1 - value) ** 2 for value in sure) / 4)
    report = json.loads((run.path / "audit/report.json").read_text())
    (row,) = report["tables"]["Scores on items that are in the training data, and on those that are not"]
    assert (row["clean"], row["clean items"], row["contaminated"], row["contaminated items"]) == (1.0, 3, 1.0, 1)
    other = make_audit(tmp_path / "runs", model=str(tmp_path / "other"), evaluation=name)
    assert start(other, 1).wait() == [42]
    assert "evaluate the same model" in log_of(other)
