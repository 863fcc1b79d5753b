"""Files that pass 1 leaves of each unit in the work area: names, record layouts, and the summary that marks a unit as done."""

import json
from collections import Counter
from dataclasses import dataclass, field

import orjson
import pyarrow as pa

from ropewalk.cluster.storage import StoragePath

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


def read_summary(work: StoragePath, index: int) -> UnitSummary:
    """The summary of a unit that is done. Raises FileNotFoundError."""
    return UnitSummary(**json.loads(work.read(summary_name(index))))


def rejection_reasons(work: StoragePath, index: int) -> Counter[str]:
    """How often each reason occurs among a unit's rejections."""
    return Counter(orjson.loads(line)["reason"] for line in work.read(rejections_name(index)).splitlines())
