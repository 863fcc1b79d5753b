"""Distillations that are killed again and again: neither parameters, nor cached logits, nor the ledger of own samples show it."""

import random
from pathlib import Path
from typing import Any

import pytest

from ropewalk.jobs.training.rollouts.ledger import read_rollouts
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, launch, log_of, losses, start, weights
from tests.jobs.tiny import tiny_model
from tests.jobs.training.distill.test_distill import distill_config, distill_run

pytestmark = [pytest.mark.soak("minutes; test_distill.py and test_on_policy.py have a kill of each, of one rank")]


@pytest.mark.parametrize(
    "keys",
    [
        {"teacher_logits": "cached", "cache": {"size": 12}},
        {"share": {"groups": 2, "values": "mean"}, "alpha": 0.3},
        {"on_policy": {"prompt_tokens": 6, "max_new_tokens": 8, "chunk": 2}, "loss": "jensen_shannon"},
    ],
    ids=["cached logits", "shared layers", "own samples"],
)
def test_twenty_random_kills_leave_no_trace(keys: dict[str, Any], tmp_path: Path) -> None:
    """Kill both ranks at once at random steps, some before the first: while the student is cut or logits are computed."""
    chance, kills = random.Random(str(keys)), 20
    teacher = tiny_model(tmp_path / "teacher", num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
    data = [make_dataset(tmp_path / name / "data") for name in ("one", "two")]
    student = {"prune": {"layers": 3, "width": 0.75, "calibration": {"sequences": 6}}}
    configs = [
        distill_config(teacher, record, student=student, steps=90, checkpoint={"every_steps": 2, "keep": 2}, **keys)
        for record in data
    ]
    whole, killed = (distill_run(tmp_path / f"runs-{number}", config) for number, config in enumerate(configs))
    launch(whole, 2)
    for number in range(kills):
        group = start(killed, 2)
        goal = min(88, max(losses(killed), default=0) + chance.randrange(1, 6)) if number % 6 else 0
        group.until(lambda goal=goal: goal == 0 or max(losses(killed), default=0) >= goal)  # type: ignore[misc]
        group.kill()
    launch(killed, 2)
    assert len(killed.attempts()) == kills + 1
    assert equal(weights(whole), weights(killed)), log_of(killed)
    assert losses(whole) == losses(killed)
    assert whole.results()["table"] == killed.results()["table"]
    chunks = [sorted(path.read_bytes() for path in record.parent.glob("data.teacher/*/*.arrow")) for record in data]
    assert chunks[0] == chunks[1]
    ledgers = [read_rollouts(run).sort_by("slot") for run in (whole, killed)]
    assert ledgers[0]["tokens"] == ledgers[1]["tokens"]
    assert set(ledgers[1]["state"].to_pylist()) <= {"used"}, "each is learnt once"
