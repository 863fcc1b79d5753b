"""The teacher's logits, computed once: a few tokens of each position, in Arrow chunks beside the data.

A chunk holds the samples at `CHUNK` positions. It is a function of teacher, data, both seeds and the options: runs that
agree in these share one copy, and a longer run adds the missing chunks.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.datapipe.loader.order import hash_words
from ropewalk.datapipe.manifest import hash_of
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.loop.batch import Batch, to_device
from ropewalk.jobs.training.loop.chunks import Chunks, compute_chunks, weights_content
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.source import TokenSource
from ropewalk.jobs.training.loop.tail import Tail, run_tail
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group
from ropewalk.sharding.parallelize import compute_format

# R rows, V vocabulary
CHUNK = 64  # samples
FULL_BYTES = 2  # bytes per logit in bf16
_SUFFIX, _FOLDER = "teacher", "teacher-logits"
_ROWS = 64  # distributions that are processed at once


def uniforms(seed: int, position: int, tokens: int) -> torch.Tensor:
    """Return a number in [0, 1) for each token of the sample at a position, float64: a function of (seed, position, token)."""
    hashes = hash_words(seed, position, np.arange(tokens))
    return torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) / 2.0**53)


def systematic_counts(probabilities_RV: torch.Tensor, uniforms_R: torch.Tensor, size: int) -> torch.Tensor:
    """Count the draws of each token in `size` draws, [R, V] int64; each row sums up to `size`.

    The draws are at (j + u) / size of the cumulative probabilities, j = 0 .. size - 1. Over u the mean of count / size is the
    probability, as for independent draws (Sparse Logit Sampling, 2503.16870), but a count differs from its mean by less than 1.
    """
    ends_RV = probabilities_RV.double().cumsum(-1)
    ends_RV *= size / ends_RV[:, -1:]
    below_RV = (ends_RV - uniforms_R[:, None]).ceil_().clamp_(0, size).long()
    below_RV[:, -1] = size
    return below_RV.diff(dim=-1, prepend=torch.zeros_like(below_RV[:, :1]))


def sample_tokens(
    logits_RV: torch.Tensor, uniforms_R: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample tokens of each row; returns ids and counts, row after row, and the number of different tokens of each row."""
    counts_RV = systematic_counts(logits_RV.float().softmax(-1), uniforms_R, size)
    rows, ids = counts_RV.nonzero(as_tuple=True)
    return ids, counts_RV[rows, ids], torch.bincount(rows, minlength=len(counts_RV))


def likeliest(logits_RV: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and probabilities of the likeliest tokens, rescaled to sum up to 1, row after row; and their number per row.

    Biased: a student learns that all other tokens are impossible.
    """
    top = logits_RV.float().topk(min(size, logits_RV.shape[1]), dim=-1)
    sizes = torch.full((len(logits_RV),), top.indices.shape[1])
    return top.indices.flatten(), top.values.softmax(-1).flatten(), sizes


def entropy(logits_RV: torch.Tensor) -> torch.Tensor:
    """Compute the entropy of each row's distribution in nats, [R]."""
    log_p_RV = logits_RV.float().log_softmax(-1)
    summed: torch.Tensor = -(log_p_RV.exp() * log_p_RV).sum(-1)
    return summed


def chunk_name(number: int) -> str:
    """Return the file name of a chunk."""
    return f"logits-{number:06d}.arrow"


def num_chunks(config: DistillConfig) -> int:
    """Return the number of chunks for all samples that the run may reach."""
    left_out = config.anomaly.max_anomalies if config.anomaly.policy == "rollback" else 0
    return math.ceil((config.steps + left_out) * config.batch.global_batch / CHUNK)


def cached_logits(
    context: JobContext, config: DistillConfig, group: Group, teacher: ModelPlan, *, loader: TokenLoader, vocabulary: int
) -> Chunks:
    """Open the cache of this run, and compute missing chunks. Raises StopRequested."""

    def find() -> tuple[str, str, list[str]]:
        fingerprint = _fingerprint(config, group.device, teacher, loader, vocabulary)
        otherwise = context.run.path / _FOLDER
        if config.cache.path is not None:
            chunks = Chunks.beside(f"{config.cache.path}/logits", _SUFFIX, fingerprint, otherwise=otherwise)
        else:
            chunks = Chunks.beside(weighted(config.data)[0].path, _SUFFIX, fingerprint, otherwise=otherwise)
        names = [chunk_name(number) for number in range(num_chunks(config))]
        return chunks.folder.url, fingerprint, [name for name in names if chunks.read(name) is None]

    url, fingerprint, missing = on_main(group, find)
    chunks = Chunks(folder=StoragePath(url), fingerprint=fingerprint)
    if missing:
        model = build_model(teacher, context.run, group, config.parallel, config.precision, trainable=False)
        computation = _ChunkComputation(config, model, group, loader, vocabulary)
        compute_chunks(context, group, chunks, missing, computation.chunk)
        reshard_all(model)
    return chunks


def cache_facts(config: DistillConfig, chunks: Chunks, vocabulary: int) -> dict[str, Any]:
    """Return the size of this run's cache, and its ratio to all logits in bf16."""
    size = sum(chunks.size(chunk_name(number)) for number in range(num_chunks(config)))
    full = num_chunks(config) * CHUNK * config.seq_len * vocabulary * FULL_BYTES
    biased = {"bias": "all but the likeliest tokens count as impossible"} if config.cache.method == "top_k" else {}
    return {"method": config.cache.method, "size": config.cache.size, "bytes": size, "share_of_full": size / full, **biased}


def _fingerprint(config: DistillConfig, device: torch.device, teacher: ModelPlan, loader: TokenLoader, vocabulary: int) -> str:
    shards = [[shard.checksum for shard in dataset.table] for dataset in loader.datasets]
    return hash_of(
        {
            "teacher": teacher.fingerprint,
            "weights": dict(weights_content(teacher.weights)),
            "data": [[*pair] for pair in zip(shards, (data_set.weight for data_set in weighted(config.data)), strict=True)],
            "samples": [config.seq_len, config.seed, config.loader.block_samples],
            "draws": [config.cache.method, config.cache.size, config.cache.seed],
            "temperature": config.temperature,
            "vocabulary": vocabulary,
            "precision": compute_format(config.precision, device),
        }
    )


class _ChunkComputation:
    """Computes chunks with a teacher that is sharded over all ranks."""

    def __init__(self, config: DistillConfig, model: nn.Module, group: Group, loader: TokenLoader, vocabulary: int) -> None:
        self.config, self.model, self.group, self.vocabulary = config, model, group, vocabulary
        self.source = TokenSource(loader)

    @torch.no_grad()
    def chunk(self, name: str, mine: bool) -> pa.Table | None:
        """Compute a chunk in forward passes that do not depend on the number of ranks."""
        first = int(name.removesuffix(".arrow").rpartition("-")[2]) * CHUNK
        parts = []
        for start in range(first, first + CHUNK, self.config.batch.forward_batch):
            positions = range(start, min(start + self.config.batch.forward_batch, first + CHUNK))
            batch = self.source.read(positions) if mine else self.source.filler()
            parts += self._samples(positions, batch) if mine else self._samples(range(0), batch)
        return pa.concat_tables(parts) if parts else None

    def _samples(self, positions: range, batch: Batch) -> list[pa.Table]:
        tables: list[pa.Table] = []

        def use(hidden_BTD: torch.Tensor, tail: Tail) -> list[torch.Tensor]:
            tables.extend(self._sample(*each, tail) for each in zip(positions, hidden_BTD, strict=False))
            return []

        run_tail(self.model, to_device(batch, self.group.device), use)
        return tables

    def _sample(self, position: int, hidden_TD: torch.Tensor, tail: Tail) -> pa.Table:
        keys, numbers = self.config.cache, uniforms(self.config.cache.seed, position, len(hidden_TD)).to(hidden_TD.device)
        parts_of_kind: list[list[torch.Tensor]] = [[], [], [], []]
        for start in range(0, len(hidden_TD), _ROWS):
            logits_RV = tail(hidden_TD[start : start + _ROWS])[:, : self.vocabulary]
            rows = logits_RV.float() / self.config.temperature
            drawn = (
                sample_tokens(rows, numbers[start : start + _ROWS], keys.size)
                if keys.method == "sampled"
                else likeliest(rows, keys.size)
            )
            for values, part in zip(parts_of_kind, (*drawn, entropy(rows)), strict=True):
                values.append(part)
        ids, weights, sizes, nats = (torch.cat(parts).cpu().numpy() for parts in parts_of_kind)
        few = np.uint8 if keys.size <= 255 else np.uint16
        kinds = {
            "ids": np.uint16 if self.vocabulary <= 1 << 16 else np.uint32,
            "weights": few if keys.method == "sampled" else np.float32,
            "sizes": np.uint16,
            "entropy": np.float32,
        }
        columns = {
            name: values.astype(kind) for (name, kind), values in zip(kinds.items(), (ids, weights, sizes, nats), strict=True)
        }
        return pa.table({"position": [position], **{name: pa.array([values]) for name, values in columns.items()}})
