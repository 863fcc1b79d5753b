"""Counts and samples of one task for the report; merging is independent of the order of tasks."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

HEAD_CHARS = 400  # length of a sample
NUM_SAMPLES = 3  # per reason; five times as many of kept documents
BINS = 32  # bin k: lengths from 2^k to 2^(k+1) tokens

Facts = dict[str, Any]


def shard_facts(
    ids: list[str], sources: list[str], heads: list[str], lengths: NDArray[np.int64], sizes: NDArray[np.int64]
) -> Facts:
    """Collect the facts of one shard: counts by source, a histogram of lengths in tokens, and samples."""
    by_source: dict[str, list[int]] = {}
    for source, length, size in zip(sources, lengths.tolist(), sizes.tolist(), strict=True):
        row = by_source.setdefault(source, [0, 0, 0])
        row[0] += 1
        row[1] += length
        row[2] += size
    bins = np.bincount(np.minimum(np.log2(np.maximum(lengths, 1)).astype(np.int64), BINS - 1), minlength=BINS)
    samples = [{"id": i, "source": s, "text": t} for i, s, t in zip(ids, sources, heads, strict=True)]
    return {"sources": by_source, "lengths": bins.tolist(), "samples": {"kept": select_samples(samples, 5 * NUM_SAMPLES)}}


def select_samples(samples: Iterable[dict[str, str]], count: int = NUM_SAMPLES) -> list[dict[str, str]]:
    """Return the samples whose ids have the smallest hashes: a random choice that is independent of their order."""
    return sorted(samples, key=lambda s: (xxhash.xxh3_64_intdigest(s["id"].encode()), s["id"], s["text"]))[:count]


def merge(parts: Iterable[Facts]) -> Facts:
    """Merge the facts of several tasks."""
    sources: dict[str, list[int]] = {}
    lengths = np.zeros(BINS, np.int64)
    samples: dict[str, list[dict[str, str]]] = {}
    for part in parts:
        for source, row in part["sources"].items():
            sources[source] = [a + b for a, b in zip(sources.get(source, [0] * len(row)), row, strict=True)]
        lengths += np.array(part.get("lengths", [0] * BINS))
        for reason, some in part["samples"].items():
            count = 5 * NUM_SAMPLES if reason == "kept" else NUM_SAMPLES
            samples[reason] = select_samples([*samples.get(reason, []), *some], count)
    return {"sources": dict(sorted(sources.items())), "lengths": lengths.tolist(), "samples": dict(sorted(samples.items()))}
