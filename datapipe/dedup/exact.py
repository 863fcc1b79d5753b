"""State of all documents in 5 bytes each: their sizes and fates, in global order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.inputs.files import Unit
from ropewalk.datapipe.inputs.unit_files import UnitSummary, hashes_of, metadata_name, unnamed_name, write_ids

# fates: why a document is dropped, else its split
DUPLICATE, NEAR_DUPLICATE, EMPTIED, LEFT_OUT, TRAIN, VALIDATION = range(6)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All documents that passed the filters. Stages fill in the fates; a kept document has TRAIN or above."""

    size: NDArray[np.uint32]  # UTF-8 bytes
    fate: NDArray[np.uint8]
    offsets: NDArray[np.int64]  # first row of each unit, and the end
    line_base: tuple[int, ...]  # lines of the same file before each unit
    unnamed: tuple[int, ...]  # units with documents whose record has no id
    copies: NDArray[np.unsignedinteger] | None = None  # number of copies of each document, if sources are balanced

    def rows_of(self, unit: int) -> slice:
        """Return the global rows of a unit's documents."""
        return slice(int(self.offsets[unit]), int(self.offsets[unit + 1]))

    def is_dropped(self, rows: slice) -> NDArray[np.bool_]:
        """Return True for each of these documents that is dropped."""
        result: NDArray[np.bool_] = self.fate[rows] < TRAIN
        return result

    @property
    def units(self) -> range:
        return range(len(self.offsets) - 1)

    def kept_bytes(self) -> int:
        """Return the total size of all kept documents."""
        parts = (self.rows_of(unit) for unit in self.units)
        return sum(int(self.size[part][self.fate[part] >= TRAIN].sum()) for part in parts)


def load_corpus(units: Sequence[Unit], summaries: Sequence[UnitSummary], work: StoragePath, validation_fraction: float) -> Corpus:
    """Read the metadata of all units, and choose each document's split by the hash of its id (FILE:LINE if it has none)."""
    offsets = np.cumsum([0, *(s.documents for s in summaries)], dtype=np.int64)
    size, fate = np.empty(offsets[-1], np.uint32), np.full(offsets[-1], TRAIN, np.uint8)
    threshold = np.uint64(min(int(validation_fraction * 2.0**64), 2**64 - 1))
    bases = line_bases(units, summaries)
    corpus = Corpus(size=size, fate=fate, offsets=offsets, line_base=tuple(bases), unnamed=())
    unnamed: list[int] = []
    for unit, base in zip(units, bases, strict=True):
        table = _metadata(work, unit)
        size[corpus.rows_of(unit.index)] = table.column("bytes").to_numpy()
        hashes = _id_hashes(table, unit, base)
        fate[corpus.rows_of(unit.index)][hashes[:, 0] < threshold] = VALIDATION
        nameless = np.flatnonzero(table.column("has_id").to_numpy() == 0)
        if len(nameless):
            unnamed.append(unit.index)
            write_ids(work, unnamed_name(unit.index), hashes[nameless], _digests(table.column("text_hash"))[nameless], nameless)
    return replace(corpus, unnamed=tuple(unnamed))


def id_hashes(units: Sequence[Unit], corpus: Corpus, work: StoragePath) -> Iterator[tuple[Unit, NDArray[np.uint64]]]:
    """Yield each unit with the hashes of its documents' ids, [documents, 2]."""
    for unit in units:
        yield unit, _id_hashes(_metadata(work, unit), unit, corpus.line_base[unit.index])


def files_of_documents(work: StoragePath, unit: Unit) -> NDArray[np.int32]:
    """Return the file of each document of a unit, as an index in the unit's files."""
    files: NDArray[np.int32] = _metadata(work, unit).column("file").to_numpy()
    return files


def _metadata(work: StoragePath, unit: Unit) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(work.read(metadata_name(unit.index)))).read_all().combine_chunks()


def _digests(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    whole = column.combine_chunks()
    return np.frombuffer(whole.buffers()[1] or b"", np.uint8, 16 * len(whole), 16 * whole.offset).reshape(-1, 16)


def _id_hashes(table: pa.Table, unit: Unit, base: int) -> NDArray[np.uint64]:
    hashes = hashes_of(_digests(table.column("id_hash")))
    lines = table.column("line").to_numpy()
    for row in np.flatnonzero(table.column("has_id").to_numpy() == 0):
        digest = xxhash.xxh3_128_digest(unnamed_id(unit, base + int(lines[row])).encode())
        hashes[row] = np.frombuffer(digest, dtype=">u8")
    return hashes


def line_bases(units: Sequence[Unit], summaries: Sequence[UnitSummary]) -> list[int]:
    """Return, for each unit, the number of lines of its file before the unit."""
    bases: list[int] = []
    count = 0
    for unit, summary in zip(units, summaries, strict=True):
        count = count if unit.piece else 0
        bases.append(count)
        count += summary.lines
    return bases


def unnamed_id(unit: Unit, line: int) -> str:
    """Return the id of a document whose record has none; `line` counts from 1 in the whole file."""
    return f"{unit.files[0].name}:{line}"
