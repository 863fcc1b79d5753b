"""Near-duplicate search over all documents: the order of the stages, and their number of parts.

Decisions depend only on the documents and their order; parts only bound the memory of a task.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import Dropped, write_dropped
from ropewalk.datapipe.dedup.near.compare import Gather, Verify
from ropewalk.datapipe.dedup.near.connect import Match, Route, Star
from ropewalk.datapipe.dedup.near.intermediate import EDGE, FOLDER, SearchPlan, decided_name
from ropewalk.datapipe.dedup.stages import RunStage, Stages
from ropewalk.datapipe.text.minhash.bands import BAND_PARTS
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.text.parted import read_all

MATCH_RECORDS = 1 << 21  # band records that a task of `match` holds
STAR_DOCUMENTS = 1 << 19
VERIFY_BYTES = 64 << 20  # candidate text per part of `verify`


@dataclass(frozen=True, kw_only=True)
class NearUnit:
    """A unit: its index, the sizes of its record batches, and the path of its texts."""

    index: int
    blocks: tuple[int, ...]
    texts: str


@dataclass(frozen=True, kw_only=True)
class NearDecisions:
    """Result of the search: counts, and files of the dropped documents, by unit."""

    files: tuple[str, ...] = ()
    units: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # number of clusters by number of documents

    def of(self, unit: int, work: StoragePath) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the global rows of a unit's dropped documents, ascending, and for each the row of the document kept instead."""
        edges = read_all(work, self.files, EDGE, unit, self.units)
        edges = edges[np.argsort(edges["from"])]
        return edges["from"].astype(np.int64), edges["to"].astype(np.int64)


def find_near_duplicates(
    units: Sequence[NearUnit], options: NearDuplicates, *, dropped: Dropped, total_bytes: int, work: StoragePath, run: RunStage
) -> NearDecisions:
    """Find the near-duplicates to drop among the documents that are not `dropped`; resumes after a kill."""
    offsets = (0, *np.cumsum([sum(unit.blocks) for unit in units]).tolist())
    documents = max(offsets[-1], 1)
    plan = SearchPlan(
        units=tuple(unit.index for unit in units),
        offsets=offsets,
        match=match_parts(documents * options.bands),
        star=documents // STAR_DOCUMENTS + 1,
    )
    stages = Stages(work, FOLDER, run)
    write_dropped(work, FOLDER, plan.units, offsets, dropped)
    stages.do("find candidates", [Match(part=part, plan=plan) for part in range(plan.match)])
    settled = _settle(stages, plan)
    routed = stages.do("cluster candidates", [Route(stage=settled, part=k, plan=plan) for k in range(plan.star)])
    candidates = sum(result["documents"] for result in routed)
    plan = replace(plan, verify=candidates * total_bytes // documents // VERIFY_BYTES + 1)
    gather = [
        Gather(index=index, blocks=unit.blocks, texts=unit.texts, options=options, plan=plan) for index, unit in enumerate(units)
    ]
    gathered = stages.do("read candidates", gather)
    verified = stages.do("compare candidates", [Verify(part=k, options=options, plan=plan) for k in range(plan.verify)])
    return _collect(plan, sum(result["candidates"] for result in gathered), verified)


def match_parts(records: int) -> int:
    """Return the number of parts of `match` such that a part has at most about MATCH_RECORDS records.

    A task reads whole parts of the files, of BAND_PARTS each, or one of several equal pieces of a part.
    """
    held = MATCH_RECORDS * BAND_PARTS / records  # file parts that a task may hold
    return math.ceil(BAND_PARTS / int(held)) if held >= 1 else BAND_PARTS * math.ceil(1 / held)


def _settle(stages: Stages, plan: SearchPlan) -> int:
    """Run stars until every candidate is connected to the smallest of its cluster; return the last stage."""
    stage, sources = 1, plan.match
    while True:
        tasks = [Star(stage=stage, part=part, plan=plan, sources=sources) for part in range(plan.star)]
        results = stages.do("cluster candidates", tasks)
        if stage % 2 and not any(result["unsettled"] for result in results):
            return stage
        stage, sources = stage + 1, plan.star


def _collect(plan: SearchPlan, candidates: int, verified: Sequence[dict[str, Any]]) -> NearDecisions:
    sizes: Counter[int] = Counter()
    for result in verified:
        sizes.update({int(size): number for size, number in result["sizes"].items()})
    counts = {
        "candidates": candidates,
        "compared": sum(result["compared"] for result in verified),
        "similar": sum(result["similar"] for result in verified),
        "clusters": sum(sizes.values()),
    }
    return NearDecisions(
        files=tuple(decided_name(part) for part in range(plan.verify)),
        units=len(plan.units),
        counts=counts,
        sizes={str(size): sizes[size] for size in sorted(sizes)},
    )
