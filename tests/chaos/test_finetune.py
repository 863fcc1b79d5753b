"""Conversations learnt through many kills: the parameters do not show it."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.launch import equal, launch, log_of, losses, start, weights
from tests.jobs.training.finetune.chats import LORA, chats, finetune_config, make_base, make_run, write_lines

pytestmark = [pytest.mark.soak("minutes; make test runs test_killed_and_resumed_is_bit_identical")]
KILLS, STEPS = 25, 100


@pytest.mark.parametrize(
    "keys",
    [{"ema": {"decay": 0.9}}, {"lora": {**LORA, "dropout": 0.1}, "neftune": 5.0, "chat": {"template": "chatml"}}],
    ids=["all weights", "an adapter and added tokens"],
)
def test_kills_at_random_steps_leave_no_trace(keys: dict[str, Any], tmp_path: Path) -> None:
    """25 kills each, 50 in all: of both ranks at once, some before the first step, in the middle of epochs and of saves."""
    chance = random.Random(str(keys))
    base = make_base(tmp_path / "base", template=None if "chat" in keys else "{% generation %}{% endgeneration %}")
    if "chat" not in keys:
        keys = {**keys, "chat": {"template": "plain"}}
    data = write_lines(tmp_path / "chats.jsonl", chats(60))
    saves = {"checkpoint": {"every_steps": 2, "keep": 2}, "batch": {"global_batch": 4, "micro_batch": 2}}
    config = finetune_config(base, data, steps=STEPS, **saves, **keys)
    whole, killed = (make_run(tmp_path / "runs", config) for _ in range(2))
    launch(whole, 2)
    for number in range(KILLS):
        group = start(killed, 2)
        goal = min(STEPS - 2, max(losses(killed), default=0) + chance.randrange(1, 6)) if number % 6 else 0
        group.until(lambda goal=goal: goal == 0 or max(losses(killed), default=0) >= goal)  # type: ignore[misc]
        group.kill()
    launch(killed, 2)
    assert len(killed.attempts()) == KILLS + 1
    assert equal(weights(whole), weights(killed)), log_of(killed)
    assert losses(whole) == losses(killed)
