"""Files that pass 1 leaves of each unit in the work area: names, record layouts, and the summary that marks a unit as done."""

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
        ("line", pa.int64()),  # as in the texts: from 1, counted from the unit's start
        ("file", pa.int32()),
        ("bytes", pa.int64()),
        ("has_id", pa.uint8()),
    ]
)
FAN_OUT = 256  # parts of a file of hashes
TEXT = np.dtype([("hash", "<u8", (2,)), ("row", "<u4")])  # row: of a document in its unit
ID = np.dtype([("hash", "<u8", (2,)), ("text", "u1", (16,)), ("row", "<u4")])  # text: the digest of the document's text


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
    counts: dict[str, int] = field(default_factory=dict)  # what filters count besides documents, such as lines


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


def languages_name(index: int) -> str:
    """The file of the languages of a unit's documents, below the work area, where sources are balanced by language."""
    return f"units/{index:06d}.languages.json"


def text_hashes_name(unit: int) -> str:
    """The file of the hashes of a unit's texts, below the work area."""
    return f"units/{unit:06d}.texts.hashes"


def ids_name(unit: int) -> str:
    """The file of the hashes of a unit's ids, of the documents whose record has one."""
    return f"units/{unit:06d}.ids.hashes"


def unnamed_name(unit: int) -> str:
    """The file of the hashes of the ids that a unit's other documents get."""
    return f"units/{unit:06d}.unnamed.hashes"


def read_summary(work: StoragePath, index: int) -> UnitSummary:
    """The summary of a unit that is done. Raises FileNotFoundError."""
    return UnitSummary(**json.loads(work.read(summary_name(index))))


def rejection_reasons(work: StoragePath, index: int) -> Counter[str]:
    """How often each reason occurs among a unit's rejections."""
    return Counter(orjson.loads(line)["reason"] for line in work.read(rejections_name(index)).splitlines())


def write_text_hashes(work: StoragePath, unit: int, digests: NDArray[np.uint8]) -> None:
    """Write the hashes of all texts of a unit; `digests` is [documents, 16]."""
    records = np.empty(len(digests), dtype=TEXT)
    records["hash"], records["row"] = hashes_of(digests), np.arange(len(digests))
    write_parts(work, text_hashes_name(unit), records, spread(records["hash"][:, 0], FAN_OUT), FAN_OUT)


def write_ids(
    work: StoragePath, name: str, hashes: NDArray[np.uint64], digests: NDArray[np.uint8], rows: NDArray[np.int64]
) -> None:
    """Write the hashes of ids [n, 2], the digests [n, 16] of their documents' texts, and their rows in the unit."""
    records = np.empty(len(rows), dtype=ID)
    records["hash"], records["text"], records["row"] = hashes, digests, rows
    write_parts(work, name, records, spread(records["hash"][:, 0], FAN_OUT), FAN_OUT)


def hashes_of(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Digests [n, 16] as numbers [n, 2]."""
    return np.ascontiguousarray(digests).view(">u8").reshape(-1, 2).astype(np.uint64)
