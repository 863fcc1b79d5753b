"""Score a model on a split, the ranks sharing the sequences, beside what a unigram model would score."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.errors import ConfigError
from cluster.run.context import JobContext
from cluster.run.directory import RunDir
from datapipe.loader.loader import Source, TokenLoader
from jobs.evaluate.generation import samples_of
from jobs.runs.find_model import find_model
from jobs.training.load_checkpoint import checkpointed_model, training_config
from jobs.training.model import check_vocabulary
from jobs.training.token_data import common_tokenizer, weighted
from jobs.training.validation import bits_per_byte, sequence_losses
from sharding.fsdp import shard_model
from sharding.group import Group

if TYPE_CHECKING:
    from jobs.evaluate.config import EvaluateConfig

_DEFAULT_SEQ_LEN = 1024


def score(context: JobContext, config: EvaluateConfig, group: Group) -> dict[str, object]:
    """The results of an evaluation, the same at every world size up to rounding."""
    found = find_model(config.model, context.run.path.parent)
    whole, shape, step = _open(found, group)
    sources = [Source(source.path, source.weight) for source in weighted(config.data)]
    seq_len = config.seq_len or (training_config(found).seq_len if isinstance(found, RunDir) else _DEFAULT_SEQ_LEN)
    loader = TokenLoader(sources, seq_len=seq_len, seed=config.seed, split=config.split)
    check_vocabulary(shape, common_tokenizer(loader.manifests, config.data).vocabulary)
    if seq_len > getattr(shape, "max_position_embeddings", seq_len):
        raise ConfigError(f"seq_len: is {seq_len}, the model has {shape.max_position_embeddings} positions")
    samples = samples_of(whole, config, loader) if whole is not None else []
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model = shard_model(skeleton, whole, group, config.fsdp)
    n = min(config.max_sequences, loader.sequences)
    losses = sequence_losses(model, loader, group, num_sequences=n, micro_batch=config.micro_batch) / seq_len
    loss = losses.mean().item()
    results: dict[str, object] = {
        "loss": loss,
        "bits_per_byte": bits_per_byte(loss, loader.bytes_per_token),
        "perplexity": math.exp(min(loss, 700.0)),
        "n": n,
        "standard_error": losses.std().item() / math.sqrt(n) if n > 1 else None,
        "unigram_loss": unigram_loss(sources, loader, n, shape.vocab_size) if group.first else None,
        "model_step": step,
        "generations": samples,
    }
    if group.first:
        context.fence.check()
        context.run.event("evaluated", loss=loss, n=n)
    return results


def _open(found: RunDir | Path, group: Group) -> tuple[nn.Module | None, Any, int | None]:
    """The whole model on rank 0, its configuration everywhere, and the step of the checkpoint."""
    model: Any = None
    step: int | None = None
    if group.first:
        if isinstance(found, RunDir):
            model, manifest = checkpointed_model(found)
            step = manifest.step
        else:
            model = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32).eval()
    values = group.from_first((model.config.to_dict(), step) if model is not None else None)
    return model, AutoConfig.for_model(**values[0]), values[1]


def unigram_loss(sources: list[Source], scored: TokenLoader, num_sequences: int, vocabulary: int) -> float:
    """Nats a token of the same targets under the train split's token counts plus one: what knowing no context gives."""
    train = TokenLoader(sources, seq_len=scored.seq_len, seed=scored.seed, split="train")
    counts = np.ones(vocabulary)
    for start in range(0, train.sequences, 256):
        tokens = train.in_order(start, min(start + 256, train.sequences))
        counts += np.bincount(tokens[:, 1:].ravel(), minlength=vocabulary)
    nats = -np.log(counts / counts.sum())
    total = sum(float(nats[scored.in_order(i, i + 1)[:, 1:]].sum()) for i in range(num_sequences))
    return total / (num_sequences * scored.seq_len)
