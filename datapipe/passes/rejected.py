"""Lists of dropped documents and their reasons: one file for each unit that has any."""

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
from ropewalk.datapipe.report.samples import HEAD_CHARS, Facts, select_samples
from ropewalk.datapipe.text.document import NamedDocument
from ropewalk.datapipe.tokens.shards import Layout, Slice, cut_slices, read_slice, slice_of

FOLDER = "rejected"
OTHERS = {DUPLICATE: "duplicate", EMPTIED: "paragraphs", LEFT_OUT: "balance"}  # reasons besides filters and near-duplicates


@dataclass(frozen=True, kw_only=True)
class RejectedPlan:
    """One file of dropped documents: those of a unit that pass 1 rejected, near-duplicates, and others by reason.

    Near-duplicate k repeats document `repeats[k]` of those in `repeated`, which may be in other units.
    """

    number: int
    unit: Unit
    line_base: int
    others: tuple[tuple[str, Slice], ...]  # duplicates, emptied documents, documents left out by balance
    near: Slice
    repeated: tuple[Slice, ...]
    repeats: NDArray[np.int32]

    @property
    def path(self) -> str:
        return f"{FOLDER}/part-{self.number:05d}.jsonl"


def plan_rejected(layout: Layout, summaries: Sequence[UnitSummary], near: NearDecisions, work: StoragePath) -> list[RejectedPlan]:
    """Plan one list for each unit that has dropped documents."""
    plans: list[RejectedPlan] = []
    layout = replace(layout, cut=False)  # samples of dropped texts are shown uncut
    for unit, summary in zip(layout.units, summaries, strict=True):
        fate = layout.corpus.fate[layout.corpus.rows_of(unit.index)]
        gone = {reason: np.flatnonzero(fate == code) for code, reason in OTHERS.items()}
        rows, kept_rows = near.of(unit.index, work)
        repeated, repeats = np.unique(kept_rows, return_inverse=True)
        if summary.rejected or len(rows) or any(len(rows) for rows in gone.values()):
            plans.append(
                RejectedPlan(
                    number=len(plans),
                    unit=unit,
                    line_base=layout.corpus.line_base[unit.index],
                    others=tuple((reason, slice_of(layout, unit, rows)) for reason, rows in gone.items() if len(rows)),
                    near=slice_of(layout, unit, rows - layout.corpus.offsets[unit.index]),
                    repeated=tuple(cut_slices(layout, repeated)),
                    repeats=repeats.astype(np.int32),
                )
            )
    return plans


def write_rejected(plan: RejectedPlan, work: StoragePath, output: StoragePath) -> Facts:
    """Write one list of {id, source, reason, file, line}, plus `repeats` for near-duplicates; return counts and samples."""
    reasons: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    samples: dict[str, list[dict[str, str]]] = {}
    lines: list[bytes] = []
    for record, head in _read_dropped(plan, work):
        lines.append(orjson.dumps(record))
        reasons[record["reason"]] += 1
        sources[record["source"]] += 1
        sample = {"id": record["id"], "source": record["source"], "text": head}
        samples[record["reason"]] = select_samples([*samples.get(record["reason"], []), sample])
    with naming_full_disk(output.url):
        output.write(plan.path, b"".join(line + b"\n" for line in lines))
    return {"reasons": dict(reasons), "sources": {name: [count] for name, count in sources.items()}, "samples": samples}


def _read_dropped(plan: RejectedPlan, work: StoragePath) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the record of each dropped document, and the beginning of its text."""
    unit = plan.unit
    for line in work.read(rejections_name(unit.index)).splitlines():
        rejection = orjson.loads(line)
        location = {"file": unit.files[rejection["file"]].name, "line": plan.line_base + rejection["line"]}
        id_ = rejection["id"] or unnamed_id(unit, location["line"])
        yield {"id": id_, "source": rejection["source"], "reason": rejection["reason"], **location}, rejection["head"]
    for reason, part in plan.others:
        for document in read_slice(part, work):
            yield _record(unit, document, reason), document.text[:HEAD_CHARS]
    of_slices = work.each(lambda part: [document.id for document in read_slice(part, work, with_text=False)], plan.repeated)
    ids = [id_ for of_slice in of_slices for id_ in of_slice]
    for document, index in zip(read_slice(plan.near, work), plan.repeats.tolist(), strict=True):
        yield {**_record(unit, document, "near_duplicate"), "repeats": ids[index]}, document.text[:HEAD_CHARS]


def _record(unit: Unit, document: NamedDocument, reason: str) -> dict[str, Any]:
    file = unit.files[0].name if len(unit.files) == 1 else document.id  # the id of a text file is its name
    return {"id": document.id, "source": document.source, "reason": reason, "file": file, "line": document.line}
