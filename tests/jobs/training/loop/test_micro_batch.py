"""The micro-batch `auto`: found, halved by each group that runs out of memory, and kept for its number of ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ropewalk.cluster.errors import EXIT_LOST_PEER
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.forecast.micro_batch import _forecast, is_out_of_memory, recorded
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.sharding.group import process_group
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, events, launch, losses, make_run, pretrain_config, start

AUTO = {"global_batch": 16, "micro_batch": "auto"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


def test_a_group_that_runs_out_of_memory_halves_it(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, pretrain_config(data, steps=3, batch=AUTO))
    planted = {"TEST_HOOK": "out_of_memory", "MOST_SAMPLES": "4", "EXHAUSTED_STEP": "1"}
    assert start(run, 2, **planted).wait() == [EXIT_LOST_PEER] * 2  # 8 samples a rank
    launch(run, 2, **planted)
    assert [event["size"] for event in events(run, "micro_batch")] == [8, 4]
    assert [(event["rank"], event["micro_batch"]) for event in events(run, "out_of_memory")] == [(1, 8)]
    fixed = make_run(tmp_path / "fixed", pretrain_config(data, steps=3, batch={**AUTO, "micro_batch": 4}))
    launch(fixed, 1)
    assert losses(run) == pytest.approx(losses(fixed), rel=1e-6)


def test_a_frozen_model_leaves_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    student = ModelPlan(config=AutoConfig.for_model(**TINY, vocab_size=257), seq_len=64)
    large = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    teacher = replace(student, config=AutoConfig.for_model(**{**TINY, **large}, vocab_size=257))
    batch = {"global_batch": 512, "micro_batch": "auto"}
    config = TrainingConfig.model_validate({"steps": 4, "batch": batch, "resources": {"memory_gib": 0.6}})
    filler = {"input_ids": torch.zeros(1, 64, dtype=torch.int64)}
    with process_group() as group:
        alone, beside = (_forecast(config, group, student, filler, frozen=frozen) for frozen in (None, teacher))
    assert alone > beside > 1


def choice(size: int, world_size: int, group: int) -> dict[str, Any]:
    return {"event": "micro_batch", "size": size, "world_size": world_size, "attempt": 1, "group": group}


def exhausted(group: int, attempt: int = 1) -> dict[str, Any]:
    return {"event": "out_of_memory", "attempt": attempt, "group": group}


def test_a_choice_is_kept_for_its_world_size() -> None:
    assert recorded([], 4) is None
    first = [choice(8, 4, 0), exhausted(0), exhausted(0)]
    assert recorded(first, 4) == 4, "two ranks of one group"
    assert recorded(first, 2) is None
    later = [*first, choice(4, 4, 1), choice(16, 2, 2), exhausted(2)]
    assert (recorded(later, 4), recorded(later, 2)) == (4, 8)
    assert recorded([choice(3, 4, 0), exhausted(0, attempt=2)], 4) == 3, "another attempt's group"
    assert recorded([choice(3, 4, 0), exhausted(0)], 4) == 2
    assert recorded([choice(1, 4, 0), exhausted(0)], 4) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("connection closed by peer"), False),
    ],
)
def test_errors_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
