"""Two evaluations compared: item by item, by seeds, and never a winner that so many items cannot show."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.evaluation.evaluate.report import write_items
from ropewalk.jobs.results.compare import compare_pairs
from ropewalk.jobs.runs.models.evaluations import FOLDER
from tests.jobs.shell import Shell


def evaluation(root: Path, rights: Sequence[float], *, name: str, seed: int = 0, requested: str = "", **keys: Any) -> RunDir:
    """A run of evaluate that is done: which items of a task its model got right."""
    config = {"model": f"/models/{name}-{seed}", "seed": seed, "name": name, **keys}
    run = RunDir.create(name, {"job": "evaluate", "config": config}, root)
    lines = [
        {
            "task": "quiz",
            "item": number,
            "hash": f"{requested}{number}",
            "prompt": f"question <{number}>",
            "options": ["left", "right"],
            "target": 1,
            "answers": [[-1.0, False], [-0.5 if right else -2.0, False]],
            "values": {"acc": right, "bits_per_byte": [-3.0 - right, 7]},
        }
        for number, right in enumerate(rights)
    ]
    write_items(run, lines)
    metrics = {"quiz": {"acc": True, "bits_per_byte": False}}
    (run.path / FOLDER / "report.json").write_text(json.dumps({"metrics": metrics}))
    return run


def rights(share: float, number: int, seed: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).random(number) < share]


def test_two_models_are_compared_item_by_item(shell: Shell) -> None:
    better, worse = rights(0.7, 400, 0), rights(0.5, 400, 1)
    first, two = (evaluation(shell.home / "runs", each, name=name) for each, name in ((better, "one"), (worse, "two")))
    answer = json.loads(shell("compare", first.id, two.id, "--json"))
    expected = compare_pairs(better, worse)
    acc, bits = answer["comparisons"]
    assert (acc["task"], acc["metric"], acc["better"], acc["n"]) == ("quiz", "acc", "first", 400)
    assert acc["difference"] == pytest.approx(np.mean(better) - np.mean(worse))
    assert acc["interval"] == pytest.approx(expected.interval)
    assert acc["p_value"] == pytest.approx(expected.p_value)
    assert answer["scores"]["quiz"]["acc"]["standard_error"] == pytest.approx(expected.standard_error)
    assert bits["unit"] == "nats of log-likelihood per unit"
    assert bits["difference"] == pytest.approx(-(np.mean(better) - np.mean(worse)) / 7)
    assert "one" in acc["words"]
    page = Path(answer["report"]).read_text()
    assert "question &lt;" in page
    assert "Items on which they differ" in page
    output = shell("compare", "one", "two")
    assert "is better, by" in output
    assert "one in twenty" in output


def test_what_so_few_items_cannot_show_has_no_winner(shell: Shell) -> None:
    for name, share in (("one", 0.55), ("two", 0.5)):
        evaluation(shell.home / "runs", rights(share, 60, 3), name=name)
    answer = json.loads(shell("compare", "one", "two", "--json"))["comparisons"][0]
    assert answer["better"] is None
    assert abs(answer["difference"]) < answer["smallest_difference"] < answer["detectable_difference"]
    assert "no significant difference" in answer["words"]
    assert "are not significant here" in answer["words"]


def test_a_few_items_that_all_part_alike_have_no_winner(shell: Shell) -> None:
    for name, right in (("one", 1.0), ("two", 0.0)):
        evaluation(shell.home / "runs", [right] * 4, name=name)
    answer = json.loads(shell("compare", "one", "two", "--json"))["comparisons"][0]
    assert (answer["better"], answer["p_value"]) == (None, 0.125)
    assert answer["words"] == (
        "quiz/acc: no significant difference (+1, equal in all of 4 items, which are too few; p = 0.125, n = 4)."
    )


def test_groups_are_compared_by_their_seeds(shell: Shell) -> None:
    root = shell.home / "runs"
    for seed in range(5):
        evaluation(root, rights(0.7 + seed / 50, 200, seed), name="many", seed=seed)
        evaluation(root, rights(0.5 + seed / 50, 200, 10 + seed), name="few", seed=seed)
    assert "add --seeds" in shell.mistake("compare", "many", "few")
    answer = json.loads(shell("compare", "many", "few", "--seeds", "--json"))
    assert len(answer["runs"]) == 5
    acc = answer["comparisons"][0]
    assert (acc["groups"], acc["n"], acc["better"]) == (5, 1000, "first")
    assert "over 5 seeds" in acc["words"]
    # luck that all items of a seed share is no evidence: the seeds' means decide
    lucky = [evaluation(root, rights(share, 2000, 99), name="lucky", seed=seed) for seed, share in enumerate((0.9, 0.3, 0.7))]
    for seed in range(3):
        evaluation(root, rights(0.5, 2000, 100), name="plain", seed=seed)
    assert json.loads(shell("compare", "lucky", "plain", "--seeds", "--json"))["comparisons"][0]["better"] is None
    alone = json.loads(shell("compare", lucky[0].id, "plain", "--seeds", "--json"))["comparisons"][0]
    assert (alone["groups"], alone["better"]) == (1, None)
    assert "not comparable with 1 seeds" in alone["words"]


def test_only_what_was_asked_alike_is_paired(shell: Shell) -> None:
    root = shell.home / "runs"
    evaluation(root, rights(0.5, 50, 0), name="old", requested="x")
    evaluation(root, rights(0.5, 50, 0), name="new", requested="y")
    evaluation(root, rights(0.5, 30, 0), name="short", requested="x")
    assert "have no items in common" in shell.mistake("compare", "old", "new")
    answer = json.loads(shell("compare", "old", "short", "--json"))["comparisons"][0]
    assert (answer["n"], answer["unpaired"], answer["p_value"]) == (30, 20, 1.0)


def test_what_was_not_evaluated_is_told(shell: Shell) -> None:
    root = shell.home / "runs"
    item = evaluation(root, rights(0.5, 9, 0), name="one")
    bare = RunDir.create("bare", {"job": "evaluate", "config": {"model": "x"}}, root)
    model = shell.home / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert "has no items yet" in shell.mistake("compare", item.id, bare.id)
    assert "was not evaluated yet" in shell.mistake("compare", item.id, str(model))
    assert "neither an evaluation, nor a group of evaluations, nor a model" in shell.mistake("compare", item.id, "nothing")
    twice = [evaluation(root, rights(0.5, 9, 0), name="twice") for _ in range(2)]
    assert "have the same seed" in shell.mistake("compare", f"{twice[0].id},{twice[1].id}", item.id, "--seeds")
