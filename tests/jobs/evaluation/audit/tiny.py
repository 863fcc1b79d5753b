"""Tiny models on the disk, biased at will, and files of every kind that an audit reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.jobs.alone import run_here
from tests.jobs.launch import TINY, launch, log_of, make_run, start

GROUPS = ("nurse", "engineer", "teacher", "driver", "baker", "guard", "lawyer", "tailor")
ENDS = ("at work", "in the shop", "on the train", "by the river", "after lunch", "in winter")
PAIRS = [
    {"more": f"the {who} said she was {end}", "less": f"the {who} said he was {end}", "target": who, "bias_type": "gender"}
    for who in GROUPS
    for end in ENDS
]
TEXTS = [pair[key] for pair in PAIRS for key in ("more", "less")]


def make_model(folder: Path, *, texts: Sequence[str] = TEXTS, seed: int = 0, **changes: Any) -> Path:
    """A random model with a tokenizer of these texts' words."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(**{**TINY, "vocab_size": tokenizer.get_vocab_size(), "bos_token_id": None, "eos_token_id": 0, **changes})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def train(folder: Path, texts: Sequence[str], *, steps: int = 60, lr: float = 1e-2, seed: int = 0, last: float = 1.0) -> Path:
    """Fine-tune a model on texts, 64 at a time, and save it again; the learning rate falls to `last` of it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [[0, *tokenizer(text).input_ids, 0] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, total_iters=steps)
    generator = torch.Generator().manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other
    for _ in range(steps):
        chosen = torch.randperm(len(rows), generator=generator)[:64]
        model(input_ids=ids[chosen], labels=labels[chosen]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def audit(root: Path, ranks: int = 1, **config: Any) -> dict[str, Any]:
    """Run the audit job to its end; one rank in this process."""
    run = make_audit(root, **config)
    return run_here(run) if ranks == 1 else launch(run, ranks)


def refused(root: Path, **config: Any) -> dict[str, Any]:
    """Run the audit job to the end that a refused gate has; returns its results."""
    run = make_audit(root, **config)
    assert start(run, 2).wait() == [42, 0], log_of(run)
    return run.results()


def make_audit(root: Path, **config: Any) -> Any:
    from ropewalk.cluster.config_reader import load_config
    from ropewalk.jobs.evaluation.audit.config import AuditConfig

    return make_run(root, load_config(AuditConfig, config).model_dump(mode="json"), "audit")


def items(root: Path) -> dict[str, dict[str, Any]]:
    """Items of the newest audit below a folder of runs, by key."""
    (newest,) = sorted(root.glob("*/audit/items.jsonl"), key=lambda path: path.stat().st_mtime_ns)[-1:]
    return {item["key"]: item for item in map(json.loads, newest.read_text().splitlines())}
