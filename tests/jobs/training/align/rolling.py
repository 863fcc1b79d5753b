"""Small GRPO runs for tests: prompts whose answers are easily rewarded."""

import json
import os
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"id": f"p{number}", "prompt": f"{number} says", "answer": "a" * (1 + number % 3)} for number in range(count)]


def write_prompts(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def share_of_letters(answer: str, record: dict[str, Any]) -> float:
    """A reward that a tiny model learns in some steps: how much of its answer are small letters."""
    return sum(letter.islower() and letter.isascii() for letter in answer) / 8


def grpo_config(model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    grpo = {"group_size": 4, "max_new_tokens": 8, "rewards": ["tests.jobs.training.align.rolling:share_of_letters"]}
    return {
        "model": {"path": str(model)},
        "data": str(data),
        "method": "grpo",
        "steps": 6,
        "batch": {"global_batch": 16, "micro_batch": 4},
        "optim": {"lr": 1e-2, "warmup_steps": 0, "schedule": "constant"},
        "checkpoint": {"every_steps": 3},
        "validation_fraction": 0.0,
        **changes,
        "grpo": grpo | changes.get("grpo", {}),
    }


def grpo_run(root: Path, config: dict[str, Any]) -> RunDir:
    return RunDir.create("grpo", {"job": "align", "entry": "ropewalk.jobs.training.align.job:main", "config": config}, root)


def faulty(answer: str, record: dict[str, Any]) -> float | None:
    """Raises, is no number, hangs, ends its process, prints, has nothing to say; by the prompt's number."""
    number = int(record["id"][1:])
    if number == 0:
        raise ValueError("cannot say")
    if number == 1:
        return float("nan")
    if number == 2:
        while True:
            pass
    if number == 3:
        os._exit(3)
    if number == 4:
        print("a reward may print")
        return None
    if number == 5:
        return "much"  # type: ignore[return-value]
    return 1.0


def always_fails(answer: str, record: dict[str, Any]) -> float:
    raise RuntimeError("no judge is there")


def last_lines(run: RunDir) -> list[dict[str, Any]]:
    """The metrics of each step, as the last attempt that took it wrote them."""
    lines = {line["step"]: line for line in run.read_metrics() if "train/reward" in line}
    return [lines[step] for step in sorted(lines)]
