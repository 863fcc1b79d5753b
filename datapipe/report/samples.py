"""What one task counts and samples for the report; it is merged over tasks in any order to the same result."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

HEAD_CHARS = 400  # of a text that is shown
SHOWN = 3  # samples of each reason, and five times as many of what is kept
BINS = 32  # lengths from 2^k to 2^(k+1) tokens

Facts = dict[str, Any]


def shard_facts(
    ids: list[str], sources: list[str], heads: list[str], lengths: NDArray[np.int64], sizes: NDArray[np.int64]
) -> Facts:
    """Of the documents of one shard: counts by source, lengths in tokens by powers of two, and a few of them."""
    by_source: dict[str, list[int]] = {}
    for source, length, size in zip(sources, lengths.tolist(), sizes.tolist(), strict=True):
        row = by_source.setdefault(source, [0, 0, 0])
        row[0] += 1
        row[1] += length
        row[2] += size
    bins = np.bincount(np.minimum(np.log2(np.maximum(lengths, 1)).astype(np.int64), BINS - 1), minlength=BINS)
    shown = [{"id": i, "source": s, "text": t} for i, s, t in zip(ids, sources, heads, strict=True)]
    return {"sources": by_source, "lengths": bins.tolist(), "samples": {"kept": fewest(shown, 5 * SHOWN)}}


def fewest(samples: Iterable[dict[str, str]], count: int = SHOWN) -> list[dict[str, str]]:
    """The samples whose ids have the smallest hashes: the same whatever the order, and from everywhere."""
    return sorted(samples, key=lambda one: (xxhash.xxh3_64_intdigest(one["id"].encode()), one["id"], one["text"]))[:count]


def merge(parts: Iterable[Facts]) -> Facts:
    """The facts of all tasks together."""
    sources: dict[str, list[int]] = {}
    lengths = np.zeros(BINS, np.int64)
    samples: dict[str, list[dict[str, str]]] = {}
    for part in parts:
        for source, row in part["sources"].items():
            sources[source] = [a + b for a, b in zip(sources.get(source, [0] * len(row)), row, strict=True)]
        lengths += np.array(part.get("lengths", [0] * BINS))
        for reason, some in part["samples"].items():
            samples[reason] = fewest([*samples.get(reason, []), *some], 5 * SHOWN if reason == "kept" else SHOWN)
    return {
        "sources": dict(sorted(sources.items())),
        "lengths": lengths.tolist(),
        "samples": dict(sorted(samples.items())),
    }
