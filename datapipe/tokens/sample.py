"""The text that a tokenizer is trained on: from record batches drawn by a hash, so that every part of the corpus counts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.equal import Renamed
from ropewalk.datapipe.dedup.exact import TRAIN
from ropewalk.datapipe.inputs.streams import MIB
from ropewalk.datapipe.tokens.shards import Layout, Slice, cut_slices, read_slice

LEAST_PIECES = 16  # a sample comes from at least so many places, where there are as many


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """The documents that a tokenizer is trained on, unit by unit."""

    slices: tuple[Slice, ...]


def plan_sample(layout: Layout, sample_mib: float, seed: int) -> SamplePlan:
    """Choose kept training documents of about `sample_mib`, at most a 16th from one record batch unless there are fewer."""
    blocks, corpus = layout.blocks, layout.corpus
    places = [(unit, block) for unit, sizes in enumerate(blocks) for block in range(len(sizes))]
    places.sort(key=lambda place: xxhash.xxh3_64_intdigest(f"{place[0]}:{place[1]}".encode(), seed=seed))
    starts = [np.cumsum([0, *sizes]) + int(corpus.offsets[unit]) for unit, sizes in enumerate(blocks)]
    wanted = int(sample_mib * MIB)
    share = max(wanted // max(min(len(places), LEAST_PIECES), 1), 1)
    chosen = []
    for unit, block in places:
        rows = np.arange(starts[unit][block], starts[unit][block + 1])
        rows = rows[corpus.fate[rows] == TRAIN]
        sizes = corpus.size[rows].astype(np.int64)
        before = np.cumsum(sizes) - sizes
        rows = rows[before < min(share, wanted)]
        chosen.append(rows)
        wanted -= int(corpus.size[rows].sum())
        if wanted <= 0:
            break
    rows = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
    return SamplePlan(slices=tuple(cut_slices(replace(layout, renamed=Renamed()), rows)))  # of their names nobody asks


def read_sample(plan: SamplePlan, work: StoragePath) -> Iterator[str]:
    """Read the texts of the sample, in global order."""
    for part in plan.slices:
        for kept in read_slice(part, work):
            yield kept.text
