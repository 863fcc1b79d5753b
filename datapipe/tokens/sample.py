"""Training text of a tokenizer: from record batches chosen by a hash, so that every part of the corpus is represented."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import xxhash

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.equal import Renamed
from ropewalk.datapipe.dedup.exact import TRAIN
from ropewalk.datapipe.inputs.streams import MIB
from ropewalk.datapipe.tokens.shards import Layout, Slice, cut_slices, read_slice

LEAST_PIECES = 16  # minimum number of record batches that a sample is drawn from, if there are as many


def plan_sample(layout: Layout, sample_mib: float, seed: int) -> tuple[Slice, ...]:
    """Choose training documents of about `sample_mib`, at most a 16th from one record batch unless there are fewer."""
    blocks, corpus = layout.blocks, layout.corpus
    order = [(unit, block) for unit, sizes in enumerate(blocks) for block in range(len(sizes))]
    order.sort(key=lambda batch: xxhash.xxh3_64_intdigest(f"{batch[0]}:{batch[1]}".encode(), seed=seed))
    starts = [np.cumsum([0, *sizes]) + int(corpus.offsets[unit]) for unit, sizes in enumerate(blocks)]
    missing = int(sample_mib * MIB)
    share = max(missing // max(min(len(order), LEAST_PIECES), 1), 1)
    chosen = []
    for unit, block in order:
        rows = np.arange(starts[unit][block], starts[unit][block + 1])
        rows = rows[corpus.fate[rows] == TRAIN]
        sizes = corpus.size[rows].astype(np.int64)
        before = np.cumsum(sizes) - sizes
        rows = rows[before < min(share, missing)]
        chosen.append(rows)
        missing -= int(corpus.size[rows].sum())
        if missing <= 0:
            break
    rows = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
    return tuple(cut_slices(replace(layout, renamed=Renamed()), rows))  # ids are not needed


def read_sample(sample: Sequence[Slice], work: StoragePath) -> Iterator[str]:
    """Read the texts of the sample, in global order."""
    for part in sample:
        for document in read_slice(part, work):
            yield document.text
