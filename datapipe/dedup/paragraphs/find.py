"""Search for paragraphs that repeat earlier ones, over all documents.

hash   paragraphs of a unit → the part of their hash
meet   all paragraphs of one part → all but the first of equal ones, by unit
cut    repeated paragraphs of a unit, in the order of its documents
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import Dropped, not_dropped, write_dropped
from ropewalk.datapipe.dedup.paragraphs.config import Paragraphs
from ropewalk.datapipe.dedup.paragraphs.cutting import CUT, FOLDER, cuts_name
from ropewalk.datapipe.dedup.stages import RunStage, Stages
from ropewalk.datapipe.inputs.files import Unit
from ropewalk.datapipe.inputs.streams import open_file
from ropewalk.datapipe.inputs.unit_files import UnitSummary, texts_name
from ropewalk.datapipe.text.compiled import kernels
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.datapipe.text.parted import read_all, read_with_file, write_parts

PARAGRAPH = np.dtype([("hash", "<u8"), ("size", "<u4"), *CUT.descr])
PART_BYTES = 128 << 20  # text per part; its records take at most half as many bytes at the default `min_bytes`


@dataclass(frozen=True, kw_only=True)
class Hash:
    """Task: find the paragraphs of a unit's documents that are not dropped."""

    folder: ClassVar[str] = FOLDER
    unit: int
    options: Paragraphs
    parts: int

    @property
    def name(self) -> str:
        return f"hash-{self.unit:06d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the paragraphs by hash; return their number."""
        of_batches, first = [np.zeros(0, dtype=PARAGRAPH)], 0
        with open_file(work, texts_name(self.unit)) as stream:
            reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[3], use_threads=False))
            for index in range(reader.num_record_batches):
                batch = DocumentBatch.of_column(reader.get_batch(index).column(0))
                records = paragraphs_of(batch, self.options)
                records["row"] += first
                of_batches.append(records)
                first += len(batch)
        records = np.concatenate(of_batches)
        records = records[not_dropped(work, FOLDER, self.unit, records["row"])]
        write_parts(work, f"{FOLDER}/hashed-{self.unit:06d}", records, _part(records["hash"], self.parts), self.parts)
        return {"paragraphs": len(records)}


@dataclass(frozen=True, kw_only=True)
class Meet:
    """Task: find equal paragraphs in one part of the hashes."""

    folder: ClassVar[str] = FOLDER
    part: int
    parts: int
    units: int

    @property
    def name(self) -> str:
        return f"meet-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the paragraphs that repeat an earlier one, by unit; return their number."""
        names = [f"{FOLDER}/hashed-{unit:06d}" for unit in range(self.units)]
        records, owner = read_with_file(work, names, PARAGRAPH, (self.part, self.part + 1), self.parts)
        order = np.lexsort((records["size"], records["hash"]))  # stable: equal ones keep the order of the input
        hashes, sizes = records["hash"][order], records["size"][order]
        again = np.zeros(len(order), dtype=bool)
        again[1:] = (hashes[1:] == hashes[:-1]) & (sizes[1:] == sizes[:-1])
        gone = np.sort(order[again])
        cuts = np.empty(len(gone), dtype=CUT)
        for column in CUT.names or ():
            cuts[column] = records[column][gone]
        write_parts(work, f"{FOLDER}/met-{self.part:05d}", cuts, owner[gone], self.units)
        return {"repeated": len(gone)}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Task: collect the cuts of one unit."""

    folder: ClassVar[str] = FOLDER
    unit: int
    parts: int
    units: int

    @property
    def name(self) -> str:
        return f"cut-{self.unit:06d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the cuts, ordered by document and position; return the number of bytes to cut."""
        names = [f"{FOLDER}/met-{part:05d}" for part in range(self.parts)]
        cuts = read_all(work, names, CUT, self.unit, self.units)
        cuts = cuts[np.lexsort((cuts["start"], cuts["row"]))]
        work.write(cuts_name(self.unit), cuts.tobytes())
        return {"bytes": int((cuts["end"].astype(np.int64) - cuts["start"]).sum())}


def find_repeated_paragraphs(
    units: Sequence[Unit],
    summaries: Sequence[UnitSummary],
    options: Paragraphs,
    *,
    dropped: Dropped,
    total_bytes: int,
    work: StoragePath,
    run: RunStage,
) -> dict[str, int]:
    """Find the paragraphs to cut from documents that are not `dropped`; return counts. Resumes after a kill."""
    ends = np.cumsum([0, *(summary.documents for summary in summaries)]).tolist()
    write_dropped(work, FOLDER, [unit.index for unit in units], ends, dropped)
    parts = total_bytes // PART_BYTES + 1
    stages = Stages(work, FOLDER, run)
    hashed = stages.do("read paragraphs", [Hash(unit=unit.index, options=options, parts=parts) for unit in units])
    met = stages.do("compare paragraphs", [Meet(part=part, parts=parts, units=len(units)) for part in range(parts)])
    cut = stages.do("cut paragraphs", [Cut(unit=unit.index, parts=parts, units=len(units)) for unit in units])
    return {
        "paragraphs.found": sum(result["paragraphs"] for result in hashed),
        "paragraphs.repeated": sum(result["repeated"] for result in met),
        "paragraphs.bytes": sum(result["bytes"] for result in cut),
    }


def paragraphs_of(batch: DocumentBatch, options: Paragraphs) -> NDArray[np.void]:
    """Return the paragraphs of a batch, ordered by document and position."""
    most = int(batch.offsets[-1] - batch.offsets[0]) // options.min_bytes + len(batch) + 1
    numbers, hashes = np.empty((4, most), dtype=np.int64), np.empty(most, dtype=np.uint64)
    columns = (numbers[0], numbers[1], numbers[2], hashes, numbers[3])
    find = kernels("ropewalk.datapipe.dedup.paragraphs.paragraph_kernels").find_paragraphs
    count = find(batch.data, batch.offsets, options.of == "lines", options.min_bytes, columns)
    records = np.empty(count, dtype=PARAGRAPH)
    for name, values in zip(("row", "start", "end", "hash", "size"), columns, strict=True):
        records[name] = values[:count]
    return records


def _part(hashes: NDArray[np.uint64], parts: int) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)).astype(np.int64)
