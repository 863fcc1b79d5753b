"""Equal texts and equal ids over all documents, by parts of their hashes: nobody holds more than a part of them.

texts   those of one part, of all units: all but the first of equal ones go
ids     those of one part, of all documents that stay: all but the first of equal ones get a suffix
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import are_set, bits_of
from ropewalk.datapipe.dedup.exact import DUPLICATE, TRAIN, Corpus
from ropewalk.datapipe.dedup.stages import RunStage, Stages
from ropewalk.datapipe.inputs.unit_files import FAN_OUT, ID, TEXT, ids_name, text_hashes_name, unnamed_name
from ropewalk.datapipe.text.parted import read_all, read_owned, read_with_parts, write_parts

FOLDER = "equal"
TASK_DOCUMENTS = 1 << 21  # whose hashes one task holds, about
KEPT = f"{FOLDER}/kept"  # bits, one for each document: whether it stays
PACKED = 1 << 20  # documents of which bits are made at a time: whole bytes of them
SUFFIX_BYTES = 4
ROW = np.dtype([("row", "<u4")])
SUFFIX = np.dtype([("row", "<u4"), ("suffix", "S33")])


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Where the suffixes are of documents whose id an earlier one has: files that are parted by unit."""

    files: tuple[str, ...] = ()
    units: int = 0

    def of(self, unit: int, work: StoragePath) -> dict[int, str]:
        """What is appended to the ids of a unit's documents, by row."""
        return {row: suffix.decode() for row, suffix in read_all(work, self.files, SUFFIX, unit, self.units).tolist()}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Find equal texts of one part of the hashes."""

    folder: ClassVar[str] = FOLDER
    part: int
    parts: int
    units: int

    @property
    def name(self) -> str:
        """The name of the task."""
        return f"texts-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the documents that repeat an earlier one, by unit; returns how many."""
        names = [text_hashes_name(unit) for unit in range(self.units)]
        records, owner = read_owned(work, names, TEXT, _bounds(self.part, self.parts), FAN_OUT)
        again = repeats(records["hash"])
        gone = np.zeros(int(again.sum()), dtype=ROW)
        gone["row"] = records["row"][again]
        write_parts(work, _repeated_name(self.part), gone, owner[again], self.units)
        return {"repeated": len(gone)}


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Find equal ids of one part of their hashes, among the documents that stay."""

    folder: ClassVar[str] = FOLDER
    part: int
    parts: int
    offsets: tuple[int, ...]  # first row of each unit, and the end
    unnamed: tuple[int, ...]  # units with documents whose record has no id

    @property
    def name(self) -> str:
        """The name of the task."""
        return f"ids-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the suffixes of documents whose id an earlier one has, by unit; returns how many."""
        units = len(self.offsets) - 1
        names = [*map(ids_name, range(units)), *map(unnamed_name, self.unnamed)]
        records, file = read_owned(work, names, ID, _bounds(self.part, self.parts), FAN_OUT)
        owner = np.array([*range(units), *self.unnamed], np.int64)[file]
        rows = np.array(self.offsets, np.int64)[owner] + records["row"]
        stay = np.flatnonzero(are_set(work.read(KEPT), rows))
        stay = stay[np.argsort(rows[stay])]
        taken = stay[repeats(records["hash"][stay])]
        found = np.zeros(len(taken), dtype=SUFFIX)
        found["row"], found["suffix"] = records["row"][taken], _suffixes(records[taken])
        write_parts(work, _renamed_name(self.part), found, owner[taken], units)
        return {"renamed": len(found)}


def drop_equal_texts(corpus: Corpus, work: StoragePath, run: RunStage) -> None:
    """Drop every document whose text an earlier one has; goes on where an earlier call was killed."""
    parts, units = _num_parts(corpus), len(corpus.units)
    Stages(work, FOLDER, run).do("find equal texts", [Texts(part=part, parts=parts, units=units) for part in range(parts)])
    for part in range(parts):
        found, owner = read_with_parts(work, _repeated_name(part), ROW, units)
        corpus.fate[corpus.offsets[owner] + found["row"]] = DUPLICATE


def rename_equal_ids(corpus: Corpus, work: StoragePath, run: RunStage) -> tuple[Renamed, int]:
    """Find new ids for the documents that stay and whose id an earlier one has; how many those are."""
    parts = _num_parts(corpus)
    pieces = range(0, len(corpus.fate), PACKED)
    work.write(KEPT, b"".join(bits_of(corpus.fate[at : at + PACKED] >= TRAIN) for at in pieces))
    offsets = tuple(corpus.offsets.tolist())
    tasks = [Ids(part=part, parts=parts, offsets=offsets, unnamed=corpus.unnamed) for part in range(parts)]
    counts = [result["renamed"] for result in Stages(work, FOLDER, run).do("find equal ids", tasks)]
    files = tuple(_renamed_name(part) for part, count in enumerate(counts) if count)
    return Renamed(files=files, units=len(corpus.units)), sum(counts)


def repeats(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """For each row of [n, 2], whether an earlier row is equal to it."""
    repeated = np.zeros(len(hashes), dtype=np.bool_)
    if len(hashes) < 2:
        return repeated
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal hashes stay in their order
    ordered = hashes[order]
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return repeated


def _suffixes(records: NDArray[np.void]) -> list[bytes]:
    """`~` and 8 hex digits of the text's hash; all 32 where an equal id has those 8 already."""
    taken: set[tuple[int, int, bytes]] = set()
    suffixes: list[bytes] = []
    for (one, other), digest in zip(records["hash"].tolist(), records["text"], strict=True):
        raw = digest.tobytes()
        key = (one, other, raw[:SUFFIX_BYTES])
        suffixes.append(b"~" + (raw if key in taken else raw[:SUFFIX_BYTES]).hex().encode())
        taken.add(key)
    return suffixes


def _bounds(part: int, parts: int) -> tuple[int, int]:
    """The parts of a unit's files that a task reads."""
    return part * FAN_OUT // parts, (part + 1) * FAN_OUT // parts


def _num_parts(corpus: Corpus) -> int:
    return min(len(corpus.size) // TASK_DOCUMENTS + 1, FAN_OUT)


def _repeated_name(part: int) -> str:
    return f"{FOLDER}/repeated-{part:05d}"


def _renamed_name(part: int) -> str:
    return f"{FOLDER}/renamed-{part:05d}"
