"""Conversations and a small base model for tests of finetuning."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.tokens.tokenizer import Encoder, take_tokenizer
from tests.datapipe.chat.tokenizers import STOCK, WORDS, make_tokenizer
from tests.jobs.launch import TINY

LORA = {"rank": 4}


def make_base(folder: Path, template: str | None = STOCK, text: str = WORDS, **changes: Any) -> Path:
    """A tiny model with its tokenizer, as a Hugging Face directory."""
    vocabulary = Encoder(take_tokenizer(str(make_tokenizer(folder, template, text)))).vocabulary
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**TINY, "vocab_size": vocabulary, **changes})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def chats(count: int, *, seed: int = 0, turns: int = 2) -> list[dict[str, Any]]:
    """Questions of a few words, and answers that say the last of them."""
    draw, vocabulary, results = random.Random(seed), WORDS.split(), []
    for number in range(count):
        messages = []
        for _ in range(draw.randint(1, turns)):
            request = draw.choices(vocabulary, k=draw.randint(1, 8))
            messages += [{"role": "user", "content": " ".join(request)}, {"role": "assistant", "content": f"{request[-1]}."}]
        results.append({"id": f"chat-{number}", "messages": messages})
    return results


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def finetune_config(base: Path, data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(base)},
        "data": str(data),
        "seq_len": 96,
        "steps": 8,
        "batch": {"global_batch": 6, "micro_batch": 2},
        "optim": {"lr": 3e-3, "warmup_steps": 2},
        "checkpoint": {"every_steps": 3},
        "validation": {"every_steps": 100, "keep_best": False},
        **changes,
    }


def make_run(root: Path, config: dict[str, Any]) -> RunDir:
    """A run whose keys are filled in, as submission does it."""
    from ropewalk.jobs.training.finetune.config import FinetuneConfig

    full = FinetuneConfig.model_validate(config).model_dump(mode="json")
    return RunDir.create("test", {"job": "finetune", "entry": "ropewalk.jobs.training.finetune.job:main", "config": full}, root)
