"""Small preference data and models for the tests of align."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from transformers import LlamaConfig, LlamaForCausalLM

from ropewalk.cluster.run.directory import RunDir
from tests.jobs.corpus import END, WORDS, write_tokenizer
from tests.jobs.launch import TINY

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A tiny model with a tokenizer of bytes and a chat template, as a Hugging Face directory."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**TINY, "vocab_size": END + 1, "eos_token_id": END, "bos_token_id": None, **changes})
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def sentence(random: np.random.Generator, least: int, most: int) -> str:
    return " ".join(random.choice(WORDS, size=random.integers(least, most)))


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with a preferred answer that speaks of ropes, and one that does not."""
    random = np.random.default_rng(seed)
    return [
        {
            "prompt": f"{number} {sentence(random, 1, 4)}:",
            "chosen": f" rope {sentence(random, 1, 5)}",
            "rejected": f" lane {sentence(random, 1, 5)}",
        }
        for number in range(count)
    ]


def write_pairs(path: Path, records: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(zstandard.compress(lines) if path.suffix == ".zst" else lines)
    return path


def align_config(model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model)},
        "data": str(data),
        "method": "dpo",
        "seq_len": 96,
        "steps": 6,
        "batch": {"global_batch": 7, "micro_batch": 2},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "checkpoint": {"every_steps": 2},
        "validation": {"every_steps": 100, "max_sequences": 9},
        "validation_fraction": 0.2,
        **changes,
    }


def align_run(root: Path, config: dict[str, Any]) -> RunDir:
    return RunDir.create("align", {"job": "align", "entry": "ropewalk.jobs.training.align.job:main", "config": config}, root)
