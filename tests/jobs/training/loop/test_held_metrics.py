"""Metrics of a step whose state is copied to the memory of nodes: they are written when the copy is complete, not before."""

import time
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.background import PAUSE_SECONDS
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines, read_lines
from ropewalk.sharding.checkpoints import memory_copies
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import losses, make_run, pretrain_config
from tests.jobs.training.loop.flips import train_rank
from tests.ranks import run_ranks

STEPS = 5


def test_metrics_of_a_step_follow_its_copy(tmp_path: Path) -> None:
    checkpoint = {"every_steps": 100, "memory_every_steps": 1}
    run = make_run(tmp_path, pretrain_config(make_dataset(tmp_path / "data"), steps=STEPS, checkpoint=checkpoint))
    run.begin_attempt()
    run_ranks(train_slowly_copied, 2, run.path)
    copies = [(line["copied"], line["reported"]) for line in read_lines(run.path / "copies.jsonl")]
    assert copies[:-1] == [(step, step - 1) for step in range(1, STEPS - 1)], (
        "the checkpoint at the end may overtake the last copy"
    )
    assert sorted(losses(run)) == list(range(1, STEPS + 1))


def train_slowly_copied(rank: int, size: int, port: int, path: Path) -> None:
    """Train, and record on rank 0 which steps have metrics when a copy is about to be written, after a while."""
    write_rank_memory = memory_copies.write_rank_memory

    def slow(content: memoryview, name: str, layout: Any) -> Any:
        time.sleep(2 * PAUSE_SECONDS)  # all that is not held is written by then
        if rank == 0:
            append_lines(path / "copies.jsonl", [{"copied": len(read_lines(path / "copies.jsonl")) + 1, "reported": reported()}])
        return write_rank_memory(content, name, layout)

    def reported() -> int:
        return max((line["step"] for line in RunDir(path).read_metrics()), default=0)

    memory_copies.write_rank_memory = slow
    train_rank(rank, size, port, path, [])
