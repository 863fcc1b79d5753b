"""Files that pass 1 writes for each unit in the work area: names, record layouts, and the summary that marks a unit as done."""

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.text.parted import spread, write_parts

TEXTS = pa.schema([("id", pa.string()), ("source", pa.string()), ("line", pa.int64()), ("text", pa.large_string())])
METADATA = pa.schema(
    [
        ("text_hash", pa.binary(16)),
        ("id_hash", pa.binary(16)),  # zeros where the record has no id
        ("line", pa.int64()),  # counted from 1 at the start of the unit, as in the texts
        ("file", pa.int32()),
        ("bytes", pa.int64()),
        ("has_id", pa.uint8()),
    ]
)
FAN_OUT = 256  # parts of a file of hashes
TEXT_HASH = np.dtype([("hash", "<u8", (2,)), ("row", "<u4")])  # row: index of the document in its unit
ID_HASH = np.dtype([("hash", "<u8", (2,)), ("text", "u1", (16,)), ("row", "<u4")])  # text: digest of the document's text


@dataclass(frozen=True, kw_only=True)
class UnitSummary:
    """Summary of a finished unit. Its file is written last: its presence means that the unit is done."""

    index: int
    documents: int = 0
    bytes: int = 0
    lines: int = 0
    rejected: int = 0
    blocks: list[int] = field(default_factory=list)  # documents in each record batch
    file_rejected: list[int] = field(default_factory=list)
    checksums: list[str] = field(default_factory=list)
    damage: dict[str, str] = field(default_factory=dict)  # index of a file → description of the damage
    counts: dict[str, int] = field(default_factory=dict)  # further counts of filters, such as dropped lines


def texts_name(index: int) -> str:
    """Path of a unit's texts in the work area."""
    return f"units/{index:06d}.texts.arrow"


def metadata_name(index: int) -> str:
    """Path of the hashes and positions of a unit's documents in the work area."""
    return f"units/{index:06d}.metadata.arrow"


def rejections_name(index: int) -> str:
    """Path of a unit's rejections in the work area."""
    return f"units/{index:06d}.rejected.jsonl"


def summary_name(index: int) -> str:
    """Path of the summary that marks a unit as done, in the work area."""
    return f"units/{index:06d}.json"


def languages_name(index: int) -> str:
    """Path of the languages of a unit's documents in the work area; written only if languages are balanced."""
    return f"units/{index:06d}.languages.json"


def text_hashes_name(unit: int) -> str:
    """Path of the hashes of a unit's texts in the work area."""
    return f"units/{unit:06d}.texts.hashes"


def ids_name(unit: int) -> str:
    """Path of the hashes of the ids of documents whose record has one."""
    return f"units/{unit:06d}.ids.hashes"


def unnamed_name(unit: int) -> str:
    """Path of the hashes of the generated ids of documents whose record has none."""
    return f"units/{unit:06d}.unnamed.hashes"


def read_summary(work: StoragePath, index: int) -> UnitSummary:
    """Read the summary of a unit. Raises FileNotFoundError if the unit is not done."""
    return UnitSummary(**json.loads(work.read(summary_name(index))))


def rejection_reasons(work: StoragePath, index: int) -> Counter[str]:
    """Count the rejections of a unit by reason."""
    return Counter(orjson.loads(line)["reason"] for line in work.read(rejections_name(index)).splitlines())


def write_text_hashes(work: StoragePath, unit: int, digests: NDArray[np.uint8]) -> None:
    """Write the hashes of all texts of a unit; `digests` is [documents, 16]."""
    records = np.empty(len(digests), dtype=TEXT_HASH)
    records["hash"], records["row"] = hashes_of(digests), np.arange(len(digests))
    write_parts(work, text_hashes_name(unit), records, spread(records["hash"][:, 0], FAN_OUT), FAN_OUT)


def write_ids(
    work: StoragePath, name: str, hashes: NDArray[np.uint64], digests: NDArray[np.uint8], rows: NDArray[np.int64]
) -> None:
    """Write the hashes of ids [n, 2], the digests [n, 16] of their documents' texts, and their rows in the unit."""
    records = np.empty(len(rows), dtype=ID_HASH)
    records["hash"], records["text"], records["row"] = hashes, digests, rows
    write_parts(work, name, records, spread(records["hash"][:, 0], FAN_OUT), FAN_OUT)


def hashes_of(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Convert digests [n, 16] to numbers [n, 2]."""
    return np.ascontiguousarray(digests).view(">u8").reshape(-1, 2).astype(np.uint64)
