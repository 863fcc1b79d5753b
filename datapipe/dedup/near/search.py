"""Near-duplicates over all documents: the order of the stages, how many parts each is cut into, and what came of it.

What is decided depends on the documents and their order alone; the parts only bound what a task holds.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import Dropped, write_dropped
from ropewalk.datapipe.dedup.near.compare import Gather, Verify
from ropewalk.datapipe.dedup.near.connect import Match, Route, Star
from ropewalk.datapipe.dedup.near.places import EDGE, FOLDER, Places, decided_name
from ropewalk.datapipe.dedup.stages import RunStage, Stages
from ropewalk.datapipe.text.minhash.bands import BAND_PARTS
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.text.parted import read_all

MATCH_RECORDS = 1 << 21  # documents in bands that a task of `match` holds
STAR_DOCUMENTS = 1 << 19
VERIFY_BYTES = 64 << 20  # of text, of candidates


@dataclass(frozen=True, kw_only=True)
class NearUnit:
    """What is known of a unit: how many documents it has, in record batches of which sizes, and where the texts are."""

    index: int
    blocks: tuple[int, ...]
    texts: str


@dataclass(frozen=True, kw_only=True)
class NearDecisions:
    """What was counted, and where the documents that go are written, by unit."""

    files: tuple[str, ...] = ()
    units: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # clusters, by their number of documents

    def of(self, unit: int, work: StoragePath) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Global rows of a unit's documents that go, ascending, and of each the one that stays for it."""
        found = read_all(work, self.files, EDGE, unit, self.units)
        found = found[np.argsort(found["from"])]
        return found["from"].astype(np.int64), found["to"].astype(np.int64)


def find_near_duplicates(
    units: Sequence[NearUnit],
    options: NearDuplicates,
    *,
    dropped: Dropped,
    total_bytes: int,
    work: StoragePath,
    run: RunStage,
) -> NearDecisions:
    """Find the documents to drop among those that are not `dropped` yet; it goes on where an earlier call was killed."""
    offsets = (0, *np.cumsum([sum(unit.blocks) for unit in units]).tolist())
    documents = max(offsets[-1], 1)
    places = Places(
        units=tuple(unit.index for unit in units),
        offsets=offsets,
        match=match_parts(documents * options.bands),
        star=documents // STAR_DOCUMENTS + 1,
    )
    stages = Stages(work, FOLDER, run)
    write_dropped(work, FOLDER, places.units, offsets, dropped)
    stages.do("find candidates", [Match(part=part, places=places) for part in range(places.match)])
    settled = _settle(stages, places)
    routed = stages.do("cluster candidates", [Route(stage=settled, part=k, places=places) for k in range(places.star)])
    candidates = sum(result["documents"] for result in routed)
    places = Places(
        units=places.units,
        offsets=offsets,
        match=places.match,
        star=places.star,
        verify=candidates * total_bytes // documents // VERIFY_BYTES + 1,
    )
    gather = [
        Gather(place=place, blocks=unit.blocks, texts=unit.texts, options=options, places=places)
        for place, unit in enumerate(units)
    ]
    gathered = stages.do("read candidates", gather)
    verified = stages.do("compare candidates", [Verify(part=k, options=options, places=places) for k in range(places.verify)])
    return _collect(places, sum(result["candidates"] for result in gathered), verified)


def match_parts(records: int) -> int:
    """In how many parts the keys are matched, so that none has more records than MATCH_RECORDS, however many there are.

    A task takes whole parts of the files, which have BAND_PARTS of them, or one of so many equal pieces of a part.
    """
    held = MATCH_RECORDS * BAND_PARTS / records  # parts of the files that a task may hold
    return math.ceil(BAND_PARTS / int(held)) if held >= 1 else BAND_PARTS * math.ceil(1 / held)


def _settle(stages: Stages, places: Places) -> int:
    """Bring all candidates to the least one of their cluster; the number of the stage that had nothing to move."""
    stage, sources = 1, places.match
    while True:
        tasks = [Star(stage=stage, part=part, places=places, sources=sources) for part in range(places.star)]
        results = stages.do("cluster candidates", tasks)
        if stage % 2 and not any(result["unsettled"] for result in results):
            return stage
        stage, sources = stage + 1, places.star


def _collect(places: Places, candidates: int, verified: Sequence[dict[str, Any]]) -> NearDecisions:
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
        files=tuple(decided_name(part) for part in range(places.verify)),
        units=len(places.units),
        counts=counts,
        sizes={str(size): sizes[size] for size in sorted(sizes)},
    )
