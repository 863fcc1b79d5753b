"""Decisions of many items, and many kills: long."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropewalk.cluster.run.files import read_lines
from ropewalk.jobs.runs.models.evaluations import items_file
from tests.jobs.evaluation.evaluate.tasks import choice_task, likelihood_task, writing_task
from tests.jobs.evaluation.evaluate.test_tasks import decisions, evaluate, written
from tests.jobs.launch import launch, make_run, start
from tests.jobs.tiny import tiny_model

pytestmark = [pytest.mark.timeout(7200)]


@pytest.mark.soak("10,000 items; test_tasks.py has 67 of every type")
def test_ten_thousand_items_are_decided_alike(tmp_path: Path) -> None:
    """Batches, ranks, the order of tasks, and a kill in the middle."""
    tiny_model(tmp_path / "model")
    tasks = [str(choice_task(tmp_path / "t", 2000, options, f"of_{options}", seed=options)) for options in (2, 3, 4, 5)]
    tasks += [str(likelihood_task(tmp_path / "t", 2000))]
    expected = decisions(evaluate(tmp_path, tasks, 1, batch_size=1)[1])
    assert len(expected) == 10_000
    for ranks, size in ((1, 4), (2, 16), (3, 32)):
        result = decisions(evaluate(tmp_path, tasks[::-1], ranks, batch_size=size, batch_tokens=4096)[1])
        assert {key: result[key] for key in expected if result[key] != expected[key]} == {}
    run = make_run(tmp_path / "runs", {"model": str(tmp_path / "model"), "tasks": tasks, "batch_size": 7}, "evaluate")
    going = start(run, 2)
    going.until(lambda: len(written(run)) > 3000)
    going.kill()
    launch(run, 3)
    assert decisions({"items": read_lines(items_file(run.path))}) == expected
    assert max(Counter(line["key"] for line in written(run)).values()) == 1


@pytest.mark.soak("ten kills; make test runs three")
def test_fifty_tasks_and_ten_kills(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    tasks = [str(choice_task(tmp_path / "t", 6, 3, f"task_{number}", seed=number)) for number in range(48)]
    tasks += [str(likelihood_task(tmp_path / "t", 20)), str(writing_task(tmp_path / "t", 20))]
    plain = evaluate(tmp_path, tasks)[1]
    run = make_run(tmp_path / "runs", {"model": str(tmp_path / "model"), "tasks": tasks, "batch_size": 1}, "evaluate")
    random, request = np.random.default_rng(0), 48 * 6 + 40
    for kill in range(10):
        enough = len(written(run)) + int(random.integers(5, request // 12))
        going: Any = start(run, int(random.integers(1, 4)), TEST_HOOK="slow_answers")
        going.until(lambda enough=enough: len(written(run)) >= enough)
        going.kill()
        assert len(written(run)) < request, f"killed {kill} times"
    launch(run, 2)
    assert max(Counter(line["key"] for line in written(run)).values()) == 1
    assert decisions({"items": read_lines(items_file(run.path))}) == decisions(plain)
