"""Tiny models with a tokenizer of bytes, as Hugging Face directories: made at the spot, in no time."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.jobs.corpus import END, write_tokenizer
from tests.jobs.launch import TINY


def tiny_model(folder: Path, *, seed: int = 0, tokenizer: bool = True, **changes: Any) -> Path:
    """A model whose weights are drawn from the seed, far enough apart that it prefers one text to another."""
    torch.manual_seed(seed)
    values = {**TINY, "vocab_size": 257, "bos_token_id": None, "eos_token_id": END, **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0)
    model.save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder)
    return folder
