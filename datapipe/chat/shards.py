"""Tasks for one unit of conversations: encode it into the work area, then split it into the shard of each split."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import xxhash

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.config import ChatConfig
from ropewalk.datapipe.chat.conversation import BadConversationError, conversation_of
from ropewalk.datapipe.chat.records import UnitNotes, read_records
from ropewalk.datapipe.chat.template import ChatTokenizer, Encoded
from ropewalk.datapipe.inputs.files import Unit
from ropewalk.datapipe.inputs.streams import naming_full_disk
from ropewalk.datapipe.inputs.unit_files import rejections_name, summary_name
from ropewalk.datapipe.manifest import Split, TokenType
from ropewalk.datapipe.shard_table import WrittenShard, describe_shard
from ropewalk.datapipe.tokens.shards import FOLDERS
from ropewalk.datapipe.tokens.tokenizer import FOLDER

ROWS_A_BATCH = 4096


def schema_of(token_type: TokenType) -> Any:
    """Return the columns of a shard; `learnt` is 1 for each token that counts in the loss."""
    tokens = {"uint16": pa.uint16(), "uint32": pa.uint32()}[token_type]
    columns = {"id": pa.string(), "source": pa.string(), "tokens": pa.large_list(tokens), "learnt": pa.large_list(pa.uint8())}
    return pa.schema([*columns.items(), ("bytes", pa.int64()), ("learnt_bytes", pa.int64()), ("hash", pa.uint64())])


@dataclass(frozen=True, kw_only=True)
class ChatUnit:
    """One unit to encode, and its settings."""

    unit: Unit
    config: ChatConfig
    token_type: TokenType


@dataclass(frozen=True, kw_only=True)
class ChatSummary:
    """Summary of a finished unit. Its file is written last: its presence means that the unit is done."""

    index: int
    conversations: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    example: dict[str, str] = field(default_factory=dict)  # reason → the first record rejected for it, with details
    checksum: str = ""
    damage: str | None = None


def encoded_name(index: int) -> str:
    """Path of a unit's conversations in the work area."""
    return f"units/{index:06d}.arrow"


@lru_cache(maxsize=1)
def _tokenizer_of(directory: Path) -> ChatTokenizer:
    return ChatTokenizer(directory)


def encode_unit(output: StoragePath, work: StoragePath, plan: ChatUnit) -> ChatSummary:
    """Encode a unit's conversations and commit them and the rejections to the work area; a pure function of the input."""
    assert output.local is not None, "conversations are prepared on a file system"
    tokenizer = _tokenizer_of(output.local / FOLDER)
    file, notes = plan.unit.files[0], UnitNotes()
    reasons: Counter[str] = Counter()
    example: dict[str, str] = {}
    rejections: list[bytes] = []
    with naming_full_disk(work.url), work.create(encoded_name(plan.unit.index)) as stream:
        rows = _Rows(stream, schema_of(plan.token_type))
        for number, record, problem in read_records(plan.unit, notes):
            name = _id_of(record, file.name, plan.unit, number)
            try:
                if record is None:
                    raise BadConversationError(problem)
                rows.add(name, file.name, tokenizer.encode(conversation_of(record, plan.config)))
            except BadConversationError as error:
                reasons[error.reason] += 1
                example.setdefault(error.reason, f"{name}: {error.detail}" if error.detail else name)
                rejections.append(orjson.dumps({"id": name, "source": file.name, "reason": error.reason, "detail": error.detail}))
        rows.close()
    summary = ChatSummary(
        index=plan.unit.index,
        conversations=rows.count,
        rejected=dict(sorted(reasons.items())),
        example=example,
        checksum=notes.checksum,
        damage=notes.damage,
    )
    with naming_full_disk(work.url):
        work.write(rejections_name(plan.unit.index), b"".join(line + b"\n" for line in rejections))
        work.write(summary_name(plan.unit.index), json.dumps(asdict(summary)).encode())
    return summary


def _id_of(record: dict[str, Any] | None, name: str, unit: Unit, number: int) -> str:
    """Return the record's id, else FILE:LINE; lines of later parts of a file are counted from the start of the part."""
    id_ = record.get("id") if record is not None else None
    if isinstance(id_, (str, int)) and not isinstance(id_, bool) and id_ != "":
        return str(id_)
    return f"{name}:{number}" if unit.piece == 0 else f"{name}@{unit.start}:{number}"


class _Rows:
    """Collects encoded conversations into record batches."""

    def __init__(self, stream: Any, schema: Any) -> None:
        self.schema, self.writer, self.count = schema, pa.ipc.new_file(stream, schema), 0
        self.columns: dict[str, list[Any]] = {name: [] for name in schema.names}

    def add(self, name: str, source: str, encoded: Encoded) -> None:
        tokens = encoded.ids.astype(np.uint32)
        digest = xxhash.xxh3_64_intdigest(tokens.tobytes() + encoded.learnt.tobytes())
        learnt = encoded.learnt.astype(np.uint8)
        values = (name, source, tokens, learnt, encoded.num_bytes, encoded.num_learnt_bytes, digest)
        for column, value in zip(self.schema.names, values, strict=True):
            self.columns[column].append(value)
        self.count += 1
        if len(self.columns["id"]) >= ROWS_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        arrays = []
        for column in self.schema:
            values, kind = self.columns[column.name], column.type
            arrays.append(_flat_lists(values, kind) if pa.types.is_large_list(kind) else pa.array(values, kind))
            self.columns[column.name] = []
        self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))

    def close(self) -> None:
        """Write the remaining rows and the end of the file."""
        self._flush()
        self.writer.close()


def _flat_lists(values: list[Any], kind: Any) -> Any:
    offsets = np.concatenate(([0], np.cumsum([len(value) for value in values], dtype=np.int64)))
    flat = np.concatenate(values) if values else np.zeros(0, np.uint8)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat.astype(kind.value_type.to_pandas_dtype())))


def unit_hashes(work: StoragePath, index: int) -> Any:
    """Return the hash of each conversation of a unit, uint64."""
    table = pa.ipc.open_file(work.read(encoded_name(index))).read_all()
    return table.column("hash").to_numpy()


@dataclass(frozen=True, kw_only=True)
class ChatSplit:
    """One unit to split: conversations with a hash up to `held_out` are for validation; -1: none."""

    index: int
    held_out: int


def split_unit(output: StoragePath, work: StoragePath, plan: ChatSplit) -> list[WrittenShard]:
    """Write a shard for each split that has conversations of this unit."""
    table = pa.ipc.open_file(work.read(encoded_name(plan.index))).read_all()
    hashes = table.column("hash").to_numpy()
    validation = hashes <= np.uint64(max(plan.held_out, 0)) if plan.held_out >= 0 else np.zeros(len(hashes), np.bool_)
    shards = []
    for split, chosen in (("train", ~validation), ("validation", validation)):
        part = table.filter(pa.array(chosen)).combine_chunks()
        if part.num_rows:
            shards.append(_write_shard(part, output, f"{FOLDERS[split]}/part-{plan.index:05d}.arrow", split))  # type: ignore[index, arg-type]
    return shards


def _write_shard(table: Any, output: StoragePath, path: str, split: Split) -> WrittenShard:
    text_bytes = int(np.sum(table.column("bytes").to_numpy()))
    with naming_full_disk(output.url), output.create(path) as stream:
        with pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)
        return describe_shard(stream, path=path, split=split, documents=table.num_rows, text_bytes=text_bytes)
