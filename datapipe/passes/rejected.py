"""The lists of dropped documents, each with its reason: one file for each unit that has any."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.exact import DUPLICATE, EMPTIED, LEFT_OUT, unnamed_id
from ropewalk.datapipe.dedup.near.search import NearDecisions
from ropewalk.datapipe.inputs.files import Unit
from ropewalk.datapipe.inputs.streams import naming_full_disk
from ropewalk.datapipe.inputs.unit_files import UnitSummary, rejections_name
from ropewalk.datapipe.report.samples import HEAD_CHARS, Facts, fewest
from ropewalk.datapipe.tokens.shards import Kept, Layout, Slice, cut_slices, read_slice, slice_of

FOLDER = "rejected"
OTHERS = {DUPLICATE: "duplicate", EMPTIED: "paragraphs", LEFT_OUT: "balance"}  # beside what filters and near-duplicates drop


@dataclass(frozen=True, kw_only=True)
class RejectedPlan:
    """One file of rejected documents: what reading rejected in a unit, its near-duplicates, and what else goes, by reason.

    Near-duplicate k repeats document `repeats[k]` of those in `repeated`, which may lie in other units.
    """

    number: int
    unit: Unit
    line_base: int
    others: tuple[tuple[str, Slice], ...]  # duplicates, what nothing was left of, what balance left out
    near: Slice
    repeated: tuple[Slice, ...]
    repeats: NDArray[np.int32]

    @property
    def path(self) -> str:
        """The path of the list in the data set."""
        return f"{FOLDER}/part-{self.number:05d}.jsonl"


def plan_rejected(layout: Layout, summaries: Sequence[UnitSummary], near: NearDecisions, work: StoragePath) -> list[RejectedPlan]:
    """A list for each unit that has any dropped document."""
    plans: list[RejectedPlan] = []
    layout = replace(layout, cut=False)  # a dropped text is shown whole
    for unit, summary in zip(layout.units, summaries, strict=True):
        fate = layout.corpus.fate[layout.corpus.rows_of(unit.index)]
        gone = {reason: np.flatnonzero(fate == code) for code, reason in OTHERS.items()}
        rows, stay = near.of(unit.index, work)
        stays, places = np.unique(stay, return_inverse=True)
        if summary.rejected or len(rows) or any(len(rows) for rows in gone.values()):
            plans.append(
                RejectedPlan(
                    number=len(plans),
                    unit=unit,
                    line_base=layout.corpus.line_base[unit.index],
                    others=tuple((reason, slice_of(layout, unit, rows)) for reason, rows in gone.items() if len(rows)),
                    near=slice_of(layout, unit, rows - layout.corpus.offsets[unit.index]),
                    repeated=tuple(cut_slices(layout, stays)),
                    repeats=places.astype(np.int32),
                )
            )
    return plans


def write_rejected(plan: RejectedPlan, work: StoragePath, output: StoragePath) -> Facts:
    """Write one file of {id, source, reason, file, line}, with `repeats` for near-duplicates; count and sample them by reason."""
    reasons: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    shown: dict[str, list[dict[str, str]]] = {}
    lines: list[bytes] = []
    for record, head in _dropped(plan, work):
        lines.append(orjson.dumps(record))
        reasons[record["reason"]] += 1
        sources[record["source"]] += 1
        sample = {"id": record["id"], "source": record["source"], "text": head}
        shown[record["reason"]] = fewest([*shown.get(record["reason"], []), sample])
    with naming_full_disk(output.url):
        output.write(plan.path, b"".join(line + b"\n" for line in lines))
    return {"reasons": dict(reasons), "sources": {name: [count] for name, count in sources.items()}, "samples": shown}


def _dropped(plan: RejectedPlan, work: StoragePath) -> Iterator[tuple[dict[str, Any], str]]:
    """Each dropped document as it is listed, and the beginning of its text."""
    unit = plan.unit
    for line in work.read(rejections_name(unit.index)).splitlines():
        one = orjson.loads(line)
        place = {"file": unit.files[one["file"]].name, "line": plan.line_base + one["line"]}
        name = one["id"] or unnamed_id(unit, place["line"])
        yield {"id": name, "source": one["source"], "reason": one["reason"], **place}, one["head"]
    for reason, part in plan.others:
        for kept in read_slice(part, work):
            yield _listed(unit, kept, reason), kept.text[:HEAD_CHARS]
    read = work.each(lambda part: [kept.id for kept in read_slice(part, work, with_text=False)], plan.repeated)
    names = [name for found in read for name in found]
    for kept, place in zip(read_slice(plan.near, work), plan.repeats.tolist(), strict=True):
        yield {**_listed(unit, kept, "near_duplicate"), "repeats": names[place]}, kept.text[:HEAD_CHARS]


def _listed(unit: Unit, kept: Kept, reason: str) -> dict[str, Any]:
    file = unit.files[0].name if len(unit.files) == 1 else kept.id  # a file of text is one document, named by the file
    return {"id": kept.id, "source": kept.source, "reason": reason, "file": file, "line": kept.line}
