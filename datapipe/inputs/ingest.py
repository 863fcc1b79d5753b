"""Pass 1, one unit at a time: read, reject, hash, and lay the texts down in blocks. No Ray in here."""

import json
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import orjson
import pyarrow as pa
import xxhash

from cluster.storage import StoragePath
from datapipe.config import ReadRules
from datapipe.inputs.files import Unit
from datapipe.inputs.readers import Document, Rejection, Tally, read_unit
from datapipe.inputs.streams import naming_full_disk

BLOCK_BYTES = 4 << 20  # of text in one record batch
BLOCK_DOCUMENTS = 8192

TEXTS = pa.schema([("id", pa.string()), ("source", pa.string()), ("line", pa.int64()), ("text", pa.large_string())])
FACTS = pa.schema(
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
    """What is known of a unit when it is done; its file is written last, so its presence means done."""

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
    """Where a unit's texts lie, below the work area."""
    return f"units/{index:06d}.texts.arrow"


def facts_name(index: int) -> str:
    """Where the hashes and places of a unit's documents lie."""
    return f"units/{index:06d}.facts.arrow"


def rejections_name(index: int) -> str:
    """Where a unit's rejections lie."""
    return f"units/{index:06d}.rejected.jsonl"


def summary_name(index: int) -> str:
    """The file that says that a unit is done."""
    return f"units/{index:06d}.json"


def normalised(text: str) -> bytes:
    """The form in which two documents count as equal: NFKC, lower case, runs of white space as one blank."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.lower().split()).encode()


def ingest_unit(unit: Unit, rules: ReadRules, work: StoragePath) -> UnitSummary:
    """Read a unit and commit its texts, facts and rejections to the work area; a pure function of the input."""
    tally = Tally()
    with naming_full_disk(work.url), work.create(texts_name(unit.index)) as texts:
        block = _Block(texts)
        rejections: list[bytes] = []
        file_rejected: Counter[int] = Counter()
        for record in read_unit(unit, rules, tally):
            if isinstance(record, Rejection):
                file_rejected[record.file] += 1
                rejections.append(orjson.dumps(asdict(record)))
            else:
                # Quality rules have their place here (a document in, a reason to reject it out), and after them the
                # masking of personal data (a document in, its masked text out), so that hashes are of what is kept.
                block.add(record)
        block.close()
    summary = UnitSummary(
        index=unit.index,
        documents=sum(block.sizes),
        bytes=block.total_bytes,
        lines=tally.lines,
        rejected=len(rejections),
        blocks=block.sizes,
        file_rejected=[file_rejected[i] for i in range(len(unit.files))],
        checksums=tally.checksums,
        damage={str(k): v for k, v in tally.damage.items()},
    )
    with naming_full_disk(work.url):
        work.write(facts_name(unit.index), block.facts())
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
        self.columns: dict[str, list[Any]] = {name: [] for name in FACTS.names}
        self._start()

    def _start(self) -> None:
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.lines: list[int] = []
        self.texts: list[str] = []
        self.held_bytes = 0

    def add(self, document: Document) -> None:
        """Take one document in."""
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
        for name, value in zip(FACTS.names, row, strict=True):
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
        """Write what is left and the file's end."""
        self._flush()
        self.writer.close()

    def facts(self) -> bytes:
        """The facts of all documents as an Arrow file."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, FACTS) as writer:
            writer.write_table(pa.table(self.columns, schema=FACTS))
        return bytes(sink.getvalue())


def rejection_reasons(work: StoragePath, index: int) -> Counter[str]:
    """How often each reason occurs among a unit's rejections."""
    return Counter(orjson.loads(line)["reason"] for line in work.read(rejections_name(index)).splitlines())
