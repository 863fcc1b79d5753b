"""Pass 1 for one unit: read, filter and hash its documents, and write them in record batches. Independent of Ray."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.filters.applying import apply_filters
from ropewalk.datapipe.filters.filter import Filter
from ropewalk.datapipe.filters.language.filter import Language
from ropewalk.datapipe.inputs.files import Unit
from ropewalk.datapipe.inputs.readers import ReadStats, read_unit
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.inputs.streams import naming_full_disk
from ropewalk.datapipe.inputs.text_hash import text_hashes
from ropewalk.datapipe.inputs.unit_files import (
    METADATA,
    TEXTS,
    UnitSummary,
    hashes_of,
    ids_name,
    languages_name,
    metadata_name,
    rejections_name,
    summary_name,
    texts_name,
    write_ids,
    write_text_hashes,
)
from ropewalk.datapipe.text.compiled import kernels
from ropewalk.datapipe.text.document import Document, Rejection
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.datapipe.text.minhash.bands import write_bands
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.text.minhash.signatures import band_keys

BLOCK_BYTES = 4 << 20  # text per record batch
BLOCK_DOCUMENTS = 8192


def ingest_unit(
    unit: Unit,
    rules: ReadRules,
    filters: Mapping[str, Filter],
    work: StoragePath,
    *,
    near: NearDuplicates | None,
    by_language: bool = False,
) -> UnitSummary:
    """Read and filter a unit and commit its texts, metadata and rejections to the work area; a pure function of the input."""
    stats = ReadStats()
    rejections: list[Rejection] = []
    counts: Counter[str] = Counter()
    keys: list[NDArray[np.uint64]] = []
    languages: list[str] = []
    with naming_full_disk(work.url), work.create(texts_name(unit.index)) as texts:
        block = _Block(texts)
        for batch in _batches(read_unit(unit, rules, stats), rejections):
            filtered = apply_filters(filters, batch)
            rejections += filtered.rejections
            counts.update(filtered.counts)
            block.add(filtered.batch)
            if near:
                keys.append(band_keys(filtered.batch, near))
            if by_language:
                languages += _languages(filtered.batch)
        block.close()
    owners = Counter(rejection.file for rejection in rejections)
    summary = UnitSummary(
        index=unit.index,
        documents=sum(block.sizes),
        bytes=block.total_bytes,
        lines=stats.lines,
        rejected=len(rejections),
        blocks=block.sizes,
        file_rejected=[owners[i] for i in range(len(unit.files))],
        checksums=stats.checksums,
        damage={str(k): v for k, v in stats.damage.items()},
        counts=dict(sorted(counts.items())),
    )
    rejections.sort(key=lambda rejection: (rejection.file, rejection.line))
    with naming_full_disk(work.url):
        if near:
            write_bands(work, unit.index, np.concatenate([np.zeros((0, near.bands), dtype=np.uint64), *keys]))
        if by_language:
            work.write(languages_name(unit.index), orjson.dumps(languages))
        work.write(metadata_name(unit.index), block.metadata())
        block.write_hashes(work, unit.index)
        work.write(rejections_name(unit.index), b"".join(orjson.dumps(r) + b"\n" for r in rejections))
        work.write(summary_name(unit.index), json.dumps(asdict(summary)).encode())
    return summary


def _languages(batch: DocumentBatch) -> list[str]:
    """Return the language of each document, from the filter `language` if it ran."""
    if "language" in batch.records.schema.names:
        return batch.column("language")
    labels: list[str] = kernels("ropewalk.datapipe.filters.language.model").labels(Language(), batch)
    return labels


def _batches(records: Iterator[Document | Rejection], rejections: list[Rejection]) -> Iterator[DocumentBatch]:
    """Group documents into batches of bounded size; append rejections to `rejections`."""
    documents: list[Document] = []
    held = 0
    for record in records:
        if isinstance(record, Rejection):
            rejections.append(record)
            continue
        documents.append(record)
        held += len(record.text)
        if held >= BLOCK_BYTES or len(documents) >= BLOCK_DOCUMENTS:
            yield DocumentBatch.of(documents)
            documents, held = [], 0
    if documents:
        yield DocumentBatch.of(documents)


class _Block:
    """Writes each batch of documents as a record batch and collects their metadata."""

    def __init__(self, stream: IO[bytes]) -> None:
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)  # the file is read once or twice, and removed
        self.writer = pa.ipc.new_file(stream, TEXTS, options=options)
        self.sizes: list[int] = []
        self.total_bytes = 0
        self.columns: dict[str, list[Any]] = {name: [] for name in METADATA.names}

    def add(self, batch: DocumentBatch) -> None:
        """Write a batch, unless it is empty."""
        if not len(batch):
            return
        ids, sizes = batch.column("id"), batch.sizes.tolist()
        rows = {
            "text_hash": text_hashes(batch),
            "id_hash": [bytes(16) if name is None else xxhash.xxh3_128_digest(name.encode()) for name in ids],
            "line": batch.column("line"),
            "file": batch.column("file"),
            "bytes": sizes,
            "has_id": [int(name is not None) for name in ids],
        }
        for name, values in rows.items():
            self.columns[name] += values
        id_column = batch.records.column("id").fill_null("")
        self.writer.write_batch(
            pa.record_batch([id_column, *(batch.records.column(name) for name in ("source", "line", "text"))], schema=TEXTS)
        )
        self.sizes.append(len(batch))
        self.total_bytes += sum(sizes)

    def close(self) -> None:
        self.writer.close()

    def metadata(self) -> bytes:
        """Return the metadata of all documents as an Arrow file."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, METADATA) as writer:
            writer.write_table(pa.table(self.columns, schema=METADATA))
        return bytes(sink.getvalue())

    def write_hashes(self, work: StoragePath, unit: int) -> None:
        """Write the hashes of texts and ids, for comparison with those of other units."""
        texts, ids = (
            np.frombuffer(b"".join(self.columns[name]), dtype=np.uint8).reshape(-1, 16) for name in ("text_hash", "id_hash")
        )
        with_id = np.flatnonzero(self.columns["has_id"])
        write_text_hashes(work, unit, texts)
        write_ids(work, ids_name(unit), hashes_of(ids[with_id]), texts[with_id], with_id)
