"""Which documents are kept, their ids and their split: decided exactly, over all documents at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from cluster.storage import StoragePath
from datapipe.inputs.files import Unit
from datapipe.inputs.ingest import UnitSummary, metadata_name

DROPPED, TRAIN, VALIDATION = 0, 1, 2
SUFFIX_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The metadata of all documents in global order: one row for each document that was read and not rejected."""

    text_hash: NDArray[np.uint64]  # [documents, 2]
    id_hash: NDArray[np.uint64]  # [documents, 2]
    size: NDArray[np.int64]  # UTF-8 bytes
    file: NDArray[np.int32]  # index in the unit's files
    offsets: NDArray[np.int64]  # first row of each unit, and the end
    line_base: tuple[int, ...]  # lines of the same file before each unit


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """The fate of each document, and the ids that change."""

    fate: NDArray[np.uint8]  # DROPPED (a duplicate, exact or near), TRAIN or VALIDATION
    suffix: dict[int, str]  # row → what is appended to its id, which an earlier document has
    copies: NDArray[np.int64] | None = None  # how often a document is taken, where sources are balanced


def load_corpus(units: Sequence[Unit], summaries: Sequence[UnitSummary], work: StoragePath) -> Corpus:
    """Read the metadata of every unit; a document without an id gets the hash of `FILE:LINE` for it."""
    bases = line_bases(units, summaries)
    parts: dict[str, list[NDArray[np.generic]]] = {"text_hash": [], "id_hash": [], "bytes": [], "file": []}
    for unit, base in zip(units, bases, strict=True):
        table = pa.ipc.open_file(pa.BufferReader(work.read(metadata_name(unit.index)))).read_all().combine_chunks()
        hashes = {name: _hashes(table.column(name)) for name in ("text_hash", "id_hash")}
        lines = table.column("line").to_numpy()
        for row in np.flatnonzero(table.column("has_id").to_numpy() == 0):
            digest = xxhash.xxh3_128_digest(unnamed_id(unit, base + int(lines[row])).encode())
            hashes["id_hash"][row] = np.frombuffer(digest, dtype=">u8")
        parts["text_hash"].append(hashes["text_hash"])
        parts["id_hash"].append(hashes["id_hash"])
        parts["bytes"].append(table.column("bytes").to_numpy())
        parts["file"].append(table.column("file").to_numpy())
    counts = [0, *(s.documents for s in summaries)]
    return Corpus(
        text_hash=np.concatenate(parts["text_hash"]).astype(np.uint64),
        id_hash=np.concatenate(parts["id_hash"]).astype(np.uint64),
        size=np.concatenate(parts["bytes"]).astype(np.int64),
        file=np.concatenate(parts["file"]).astype(np.int32),
        offsets=np.cumsum(counts, dtype=np.int64),
        line_base=tuple(bases),
    )


def _hashes(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    raw = b"".join(column.to_pylist())
    return np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def line_bases(units: Sequence[Unit], summaries: Sequence[UnitSummary]) -> list[int]:
    """For each unit, the number of lines of its file that come before it."""
    bases: list[int] = []
    count = 0
    for unit, summary in zip(units, summaries, strict=True):
        count = count if unit.piece else 0
        bases.append(count)
        count += summary.lines
    return bases


def unnamed_id(unit: Unit, line: int) -> str:
    """The id of a document whose record has none; `line` counts from 1 in the whole file."""
    return f"{unit.files[0].name}:{line}"


def decide(corpus: Corpus, validation_fraction: float, dropped: NDArray[np.bool_]) -> Decisions:
    """Drop the documents of these rows, rename an id that is taken, and choose the split by the id's hash alone."""
    fate = np.full(len(corpus.size), TRAIN, dtype=np.uint8)
    threshold = min(int(validation_fraction * 2.0**64), 2**64 - 1)
    fate[corpus.id_hash[:, 0] < np.uint64(threshold)] = VALIDATION
    fate[dropped] = DROPPED
    kept = np.flatnonzero(fate)
    return Decisions(fate=fate, suffix=_suffixes(kept[repeats(corpus.id_hash[kept])], corpus))


def repeats(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """For each row of [n, 2], whether an earlier row is equal to it."""
    repeated = np.zeros(len(hashes), dtype=np.bool_)
    if len(hashes) < 2:
        return repeated
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal hashes stay in global order
    ordered = hashes[order]
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return repeated


def _suffixes(rows: NDArray[np.int64], corpus: Corpus) -> dict[int, str]:
    """`~` and 8 hex digits of the text's hash; all 32 where an equal id has those 8 already."""
    taken: set[tuple[int, int, bytes]] = set()
    suffix: dict[int, str] = {}
    for row in rows.tolist():
        digest = corpus.text_hash[row].astype(">u8").tobytes()
        key = (int(corpus.id_hash[row, 0]), int(corpus.id_hash[row, 1]), digest[:SUFFIX_BYTES])
        suffix[row] = "~" + (digest.hex() if key in taken else digest[:SUFFIX_BYTES].hex())
        taken.add(key)
    return suffix
