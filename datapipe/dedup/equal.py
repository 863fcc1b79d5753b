"""Equal texts and equal ids over all documents, partitioned by hash so that a task holds only one part.

texts   drop all but the first of equal texts
ids     append a suffix to all but the first of equal ids, among the documents that are kept
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import are_set, bits_of
from ropewalk.datapipe.dedup.exact import DUPLICATE, TRAIN, Corpus
from ropewalk.datapipe.dedup.stages import RunStage, Stages
from ropewalk.datapipe.inputs.unit_files import FAN_OUT, ID_HASH, TEXT_HASH, ids_name, text_hashes_name, unnamed_name
from ropewalk.datapipe.text.parted import read_all, read_with_file, read_with_parts, write_parts

FOLDER = "equal"
TASK_DOCUMENTS = 1 << 21  # approximate number of documents whose hashes a task holds
KEPT = f"{FOLDER}/kept"  # one bit per document, set if it is kept
PACKED = 1 << 20  # documents whose bits are packed at a time; a multiple of 8
SUFFIX_BYTES = 4
ROW = np.dtype([("row", "<u4")])
SUFFIX = np.dtype([("row", "<u4"), ("suffix", "S33")])


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Files, partitioned by unit, with the suffixes for ids that an earlier document has."""

    files: tuple[str, ...] = ()
    units: int = 0

    def of(self, unit: int, work: StoragePath) -> dict[int, str]:
        """Return the suffixes for ids of a unit's documents, by row."""
        return {row: suffix.decode() for row, suffix in read_all(work, self.files, SUFFIX, unit, self.units).tolist()}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Task: find equal texts in one part of the hashes."""

    folder: ClassVar[str] = FOLDER
    part: int
    parts: int
    units: int

    @property
    def name(self) -> str:
        return f"texts-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the documents that repeat an earlier one, by unit; return their number."""
        names = [text_hashes_name(unit) for unit in range(self.units)]
        records, owner = read_with_file(work, names, TEXT_HASH, _bounds(self.part, self.parts), FAN_OUT)
        again = repeats(records["hash"])
        gone = np.zeros(int(again.sum()), dtype=ROW)
        gone["row"] = records["row"][again]
        write_parts(work, _repeated_name(self.part), gone, owner[again], self.units)
        return {"repeated": len(gone)}


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Task: find equal ids in one part of the hashes, among the documents that are kept."""

    folder: ClassVar[str] = FOLDER
    part: int
    parts: int
    offsets: tuple[int, ...]  # first row of each unit, and the end
    unnamed: tuple[int, ...]  # units with documents whose record has no id

    @property
    def name(self) -> str:
        return f"ids-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the suffixes for ids that an earlier document has, by unit; return their number."""
        units = len(self.offsets) - 1
        names = [*map(ids_name, range(units)), *map(unnamed_name, self.unnamed)]
        records, file = read_with_file(work, names, ID_HASH, _bounds(self.part, self.parts), FAN_OUT)
        owner = np.array([*range(units), *self.unnamed], np.int64)[file]
        rows = np.array(self.offsets, np.int64)[owner] + records["row"]
        remaining = np.flatnonzero(are_set(work.read(KEPT), rows))
        remaining = remaining[np.argsort(rows[remaining])]
        taken = remaining[repeats(records["hash"][remaining])]
        suffixes = np.zeros(len(taken), dtype=SUFFIX)
        suffixes["row"], suffixes["suffix"] = records["row"][taken], _suffixes(records[taken])
        write_parts(work, _renamed_name(self.part), suffixes, owner[taken], units)
        return {"renamed": len(suffixes)}


def drop_equal_texts(corpus: Corpus, work: StoragePath, run: RunStage) -> None:
    """Drop every document whose text an earlier document has; resumes after a kill."""
    parts, units = _num_parts(corpus), len(corpus.units)
    Stages(work, FOLDER, run).do("find equal texts", [Texts(part=part, parts=parts, units=units) for part in range(parts)])
    for part in range(parts):
        repeated, owner = read_with_parts(work, _repeated_name(part), ROW, units)
        corpus.fate[corpus.offsets[owner] + repeated["row"]] = DUPLICATE


def rename_equal_ids(corpus: Corpus, work: StoragePath, run: RunStage) -> tuple[Renamed, int]:
    """Find suffixes for the ids of kept documents that an earlier one has; also return their number."""
    parts = _num_parts(corpus)
    pieces = range(0, len(corpus.fate), PACKED)
    work.write(KEPT, b"".join(bits_of(corpus.fate[at : at + PACKED] >= TRAIN) for at in pieces))
    offsets = tuple(corpus.offsets.tolist())
    tasks = [Ids(part=part, parts=parts, offsets=offsets, unnamed=corpus.unnamed) for part in range(parts)]
    counts = [result["renamed"] for result in Stages(work, FOLDER, run).do("find equal ids", tasks)]
    files = tuple(_renamed_name(part) for part, count in enumerate(counts) if count)
    return Renamed(files=files, units=len(corpus.units)), sum(counts)


def repeats(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return True for each row of [n, 2] that is equal to an earlier row."""
    repeated = np.zeros(len(hashes), dtype=np.bool_)
    if len(hashes) < 2:
        return repeated
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal hashes stay in their order
    ordered = hashes[order]
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return repeated


def _suffixes(records: NDArray[np.void]) -> list[bytes]:
    """Return `~` and 8 hex digits of the text's hash; all 32 digits if an equal id has these 8 already."""
    taken: set[tuple[int, int, bytes]] = set()
    suffixes: list[bytes] = []
    for (high, low), digest in zip(records["hash"].tolist(), records["text"], strict=True):
        raw = digest.tobytes()
        key = (high, low, raw[:SUFFIX_BYTES])
        suffixes.append(b"~" + (raw if key in taken else raw[:SUFFIX_BYTES]).hex().encode())
        taken.add(key)
    return suffixes


def _bounds(part: int, parts: int) -> tuple[int, int]:
    """Return the range of file parts that a task reads."""
    return part * FAN_OUT // parts, (part + 1) * FAN_OUT // parts


def _num_parts(corpus: Corpus) -> int:
    return min(len(corpus.size) // TASK_DOCUMENTS + 1, FAN_OUT)


def _repeated_name(part: int) -> str:
    return f"{FOLDER}/repeated-{part:05d}"


def _renamed_name(part: int) -> str:
    return f"{FOLDER}/renamed-{part:05d}"
