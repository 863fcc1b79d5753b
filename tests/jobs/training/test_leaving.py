"""Every job that trains can leave a group that breaks, and take its process into the next one."""

from pathlib import Path

import pytest

from tests.jobs.corpus import make_dataset
from tests.jobs.tiny import tiny_model
from tests.jobs.training.align.pairs import align_config, align_run, make_model, pairs, write_pairs
from tests.jobs.training.align.rolling import grpo_config, grpo_run, prompts, write_prompts
from tests.jobs.training.distill.test_distill import distill_config, distill_run
from tests.jobs.training.finetune.chats import chats, finetune_config, make_base, make_run, write_lines
from tests.jobs.training.leaving import check_leaving

KEYS = {"steps": 100, "checkpoint": {"every_steps": 3}}  # each group begins where the one before has saved


@pytest.mark.soak("make test leaves groups of pretrain")
def test_finetune(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "chats.jsonl", chats(40))
    config = finetune_config(make_base(tmp_path / "base"), data, lora={"rank": 4}, **KEYS)
    check_leaving(make_run(tmp_path, config), tmp_path)


@pytest.mark.soak("make test leaves groups of pretrain")
def test_align(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl.zst", pairs(50))
    check_leaving(align_run(tmp_path, align_config(make_model(tmp_path / "model"), data, **KEYS)), tmp_path)


@pytest.mark.soak("make test leaves groups of pretrain")
def test_grpo(tmp_path: Path) -> None:
    data = write_prompts(tmp_path / "prompts.jsonl", prompts(10))
    batch = {"global_batch": 4, "micro_batch": 4}
    config = grpo_config(make_model(tmp_path / "model"), data, batch=batch, grpo={"kl": 0.001}, **KEYS)
    check_leaving(grpo_run(tmp_path, config), tmp_path)


@pytest.mark.soak("make test leaves groups of pretrain")
def test_distill(tmp_path: Path) -> None:
    data, teacher = make_dataset(tmp_path / "data"), tiny_model(tmp_path / "teacher", num_hidden_layers=3)
    written = {"share": 0.5, "prompt_tokens": 8, "max_new_tokens": 8}
    check_leaving(distill_run(tmp_path, distill_config(teacher, data, on_policy=written, **KEYS)), tmp_path)
