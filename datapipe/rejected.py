"""The lists of dropped documents, each with its reason: one file for each unit that has any."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.storage import StoragePath
from datapipe.dedup.exact import unnamed_id
from datapipe.inputs.ingest import rejections_name
from datapipe.inputs.streams import naming_full_disk
from datapipe.tokens.shards import Slice, read_slice

FOLDER = "rejected"


@dataclass(frozen=True, kw_only=True)
class RejectedPlan:
    """One file of rejected documents: what reading rejected in a unit, its exact duplicates, its near-duplicates.

    Near-duplicate k repeats document `repeats[k]` of those in `repeated`, which may lie in other units.
    """

    number: int
    duplicates: Slice
    near: Slice
    repeated: tuple[Slice, ...]
    repeats: NDArray[np.int32]

    @property
    def path(self) -> str:
        """The path of the list in the data set."""
        return f"{FOLDER}/part-{self.number:05d}.jsonl"


def write_rejected(plan: RejectedPlan, work: StoragePath, output: StoragePath) -> dict[str, int]:
    """Write one file of {id, source, reason}, with `repeats` for near-duplicates; return how many there are of each reason."""
    unit = plan.duplicates.unit
    reasons: Counter[str] = Counter()
    lines: list[bytes] = []
    for line in work.read(rejections_name(unit.index)).splitlines():
        record = orjson.loads(line)
        name = record["id"] or unnamed_id(unit, plan.duplicates.line_base + record["line"])
        lines.append(orjson.dumps({"id": name, "source": record["source"], "reason": record["reason"]}))
        reasons[record["reason"]] += 1
    for kept in read_slice(plan.duplicates, work, with_text=False):
        lines.append(orjson.dumps({"id": kept.id, "source": kept.source, "reason": "duplicate"}))
        reasons["duplicate"] += 1
    names = [kept.id for part in plan.repeated for kept in read_slice(part, work, with_text=False)]
    for kept, place in zip(read_slice(plan.near, work, with_text=False), plan.repeats.tolist(), strict=True):
        lines.append(orjson.dumps({"id": kept.id, "source": kept.source, "reason": "near_duplicate", "repeats": names[place]}))
        reasons["near_duplicate"] += 1
    with naming_full_disk(output.url):
        output.write(plan.path, b"".join(line + b"\n" for line in lines))
    return dict(reasons)
