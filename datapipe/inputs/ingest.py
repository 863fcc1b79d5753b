"""Pass 1, one unit at a time: read, filter, hash, and write the texts in record batches. It knows nothing of Ray."""

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import orjson
import pyarrow as pa
import xxhash

from cluster.storage import StoragePath
from datapipe.config import ReadRules
from datapipe.document import Document, Rejection
from datapipe.filters.filter import Filter
from datapipe.filters.registry import apply_filters
from datapipe.inputs.files import Unit
from datapipe.inputs.readers import ReadStats, read_unit
from datapipe.inputs.streams import naming_full_disk

BLOCK_BYTES = 4 << 20  # of text in one record batch
BLOCK_DOCUMENTS = 8192

TEXTS = pa.schema([("id", pa.string()), ("source", pa.string()), ("line", pa.int64()), ("text", pa.large_string())])
METADATA = pa.schema(
    [
        ("text_hash", pa.binary(16)),
        ("id_hash", pa.binary(16)),  # zeros where the record has no id
        ("line", pa.int64()),  # as in the texts: from 1, counted from the unit's start
        ("file", pa.int32()),
        ("bytes", pa.int64()),
        ("has_id", pa.uint8()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class UnitSummary:
    """The summary of a unit that is done; its file is written last, so that its presence means done."""

    index: int
    documents: int = 0
    bytes: int = 0
    lines: int = 0
    rejected: int = 0
    blocks: list[int] = field(default_factory=list)  # documents in each record batch
    file_rejected: list[int] = field(default_factory=list)
    checksums: list[str] = field(default_factory=list)
    damage: dict[str, str] = field(default_factory=dict)  # index of a file → what is wrong with it


def texts_name(index: int) -> str:
    """The file of a unit's texts, below the work area."""
    return f"units/{index:06d}.texts.arrow"


def metadata_name(index: int) -> str:
    """The file of the hashes and positions of a unit's documents, below the work area."""
    return f"units/{index:06d}.metadata.arrow"


def rejections_name(index: int) -> str:
    """The file of a unit's rejections, below the work area."""
    return f"units/{index:06d}.rejected.jsonl"


def summary_name(index: int) -> str:
    """The file that says that a unit is done, below the work area."""
    return f"units/{index:06d}.json"


def normalised(text: str) -> bytes:
    """The form in which two documents count as equal: NFKC, lower case, runs of white space as one blank."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.lower().split()).encode()


def ingest_unit(unit: Unit, rules: ReadRules, filters: Mapping[str, Filter], work: StoragePath) -> UnitSummary:
    """Read and filter a unit, and commit its texts, metadata and rejections to the work area; a pure function of the input."""
    stats = ReadStats()
    with naming_full_disk(work.url), work.create(texts_name(unit.index)) as texts:
        block = _Block(texts)
        rejections: list[bytes] = []
        file_rejected: Counter[int] = Counter()
        for record in read_unit(unit, rules, stats):
            judged = apply_filters(filters, record) if isinstance(record, Document) else record
            if isinstance(judged, Rejection):
                file_rejected[judged.file] += 1
                rejections.append(orjson.dumps(asdict(judged)))
            else:
                block.add(judged)
        block.close()
    summary = UnitSummary(
        index=unit.index,
        documents=sum(block.sizes),
        bytes=block.total_bytes,
        lines=stats.lines,
        rejected=len(rejections),
        blocks=block.sizes,
        file_rejected=[file_rejected[i] for i in range(len(unit.files))],
        checksums=stats.checksums,
        damage={str(k): v for k, v in stats.damage.items()},
    )
    with naming_full_disk(work.url):
        work.write(metadata_name(unit.index), block.metadata())
        work.write(rejections_name(unit.index), b"".join(line + b"\n" for line in rejections))
        work.write(summary_name(unit.index), json.dumps(asdict(summary)).encode())
    return summary


def read_summary(work: StoragePath, index: int) -> UnitSummary:
    """The summary of a unit that is done. Raises FileNotFoundError."""
    return UnitSummary(**json.loads(work.read(summary_name(index))))


class _Block:
    """Collects documents into record batches of bounded size and writes them as they fill."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.writer = pa.ipc.new_file(stream, TEXTS, options=pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False))
        self.sizes: list[int] = []
        self.total_bytes = 0
        self.columns: dict[str, list[Any]] = {name: [] for name in METADATA.names}
        self._start()

    def _start(self) -> None:
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.lines: list[int] = []
        self.texts: list[str] = []
        self.held_bytes = 0

    def add(self, document: Document) -> None:
        """Add one document."""
        size = len(document.text) if document.text.isascii() else len(document.text.encode())
        self.ids.append(document.id or "")
        self.sources.append(document.source)
        self.lines.append(document.line)
        self.texts.append(document.text)
        named = document.id is not None
        row = (
            xxhash.xxh3_128_digest(normalised(document.text)),
            xxhash.xxh3_128_digest((document.id or "").encode()) if named else bytes(16),
            document.line,
            document.file,
            size,
            int(named),
        )
        for name, value in zip(METADATA.names, row, strict=True):
            self.columns[name].append(value)
        self.held_bytes += size
        if self.held_bytes >= BLOCK_BYTES or len(self.ids) >= BLOCK_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        if self.ids:
            self.writer.write_batch(pa.record_batch([self.ids, self.sources, self.lines, self.texts], schema=TEXTS))
            self.sizes.append(len(self.ids))
            self.total_bytes += self.held_bytes
            self._start()

    def close(self) -> None:
        """Write the documents that are left, and the end of the file."""
        self._flush()
        self.writer.close()

    def metadata(self) -> bytes:
        """The metadata of all documents as the bytes of an Arrow file."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, METADATA) as writer:
            writer.write_table(pa.table(self.columns, schema=METADATA))
        return bytes(sink.getvalue())


def rejection_reasons(work: StoragePath, index: int) -> Counter[str]:
    """How often each reason occurs among a unit's rejections."""
    return Counter(orjson.loads(line)["reason"] for line in work.read(rejections_name(index)).splitlines())
