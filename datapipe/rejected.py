"""The lists of dropped documents, each with its reason: one file for each unit that has any."""

from collections import Counter
from dataclasses import dataclass

import orjson

from cluster.storage import StoragePath
from datapipe.dedup.exact import unnamed_id
from datapipe.inputs.ingest import rejections_name
from datapipe.inputs.streams import naming_full_disk
from datapipe.tokens.shards import Slice, read_slice

FOLDER = "rejected"


@dataclass(frozen=True, kw_only=True)
class RejectedPlan:
    """One file of rejected documents: what reading rejected in a unit, then the unit's duplicates."""

    number: int
    duplicates: Slice

    @property
    def path(self) -> str:
        """The path of the list in the data set."""
        return f"{FOLDER}/part-{self.number:05d}.jsonl"


def write_rejected(plan: RejectedPlan, work: StoragePath, output: StoragePath) -> dict[str, int]:
    """Write one file of {id, source, reason}, and return how many there are of each reason."""
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
    with naming_full_disk(output.url):
        output.write(plan.path, b"".join(line + b"\n" for line in lines))
    return dict(reasons)
