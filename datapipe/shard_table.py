"""Table of a data set's shards, with checksums of their blocks: Arrow and binary files that are mapped, never parsed."""

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest, Shard, Split, SplitRecord, TableRecord, checksum_of, write_manifest

TABLE_NAME = "shards.ipc"  # not .arrow, which readers of a folder take for documents
BLOCKS_NAME = "blocks.xxh3"  # xxh3_64 of each block, 8 bytes little-endian, shard after shard in the order of the table
BLOCK_BYTES = 1 << 20
LISTED = 1000  # data sets of more shards name them in the table alone, so that every manifest is read in milliseconds

SUM = np.dtype("<u8")
DIGEST = pa.binary(16)
COLUMNS = {"path": pa.string(), "split": pa.dictionary(pa.int8(), pa.string())}
NUMBERS = ("documents", "tokens", "bytes", "size", "tokens_at", "first_block")
SCHEMA = pa.schema([*COLUMNS.items(), *((name, pa.int64()) for name in NUMBERS), ("checksum", DIGEST), ("blocks", DIGEST)])


class WrittenShard(Shard):
    """A shard with the checksums of its blocks as hex, until the table is written."""

    sums: str


def describe_shard(stream: IO[bytes], *, path: str, split: Split, documents: int, text_bytes: int) -> WrittenShard:
    """Describe the Arrow file that was written to `stream`: its checksums, and where its tokens are."""
    stream.flush()
    content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    buffer = pa.py_buffer(content)
    reader = pa.ipc.open_file(buffer)
    assert reader.num_record_batches == 1, "a shard is one record batch, so that its tokens are one array"
    tokens = reader.get_batch(0).column("tokens").flatten()
    sums = block_sums(content)
    return WrittenShard(
        path=path,
        split=split,
        documents=documents,
        tokens=len(tokens),
        bytes=text_bytes,
        size=len(content),
        checksum=checksum_of(content),
        tokens_at=tokens.buffers()[1].address + tokens.offset * tokens.type.bit_width // 8 - buffer.address,
        blocks=checksum_of(sums),
        sums=sums.hex(),
    )


def block_sums(content: Any) -> bytes:
    """Return the checksums of the blocks of a file's content."""
    view = memoryview(content)
    sums = [xxhash.xxh3_64_intdigest(view[start : start + BLOCK_BYTES]) for start in range(0, len(view), BLOCK_BYTES)]
    return np.array(sums, SUM).tobytes()


def write_data_set(data_set: StoragePath, manifest: Manifest, shards: Iterable[WrittenShard]) -> Manifest:
    """Write the table of shards and the checksums of their blocks, then the manifest, which completes the data set."""
    rows = sorted(shards, key=lambda shard: shard.split)  # stable: the shards of a split follow each other in order
    data_set.write(BLOCKS_NAME, b"".join(bytes.fromhex(row.sums) for row in rows))
    ends = np.cumsum([len(row.sums) // (2 * SUM.itemsize) for row in rows])
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in ("path", "split", *NUMBERS[:-1])}
    columns["first_block"] = [0, *ends[:-1].tolist()]
    columns |= {name: [bytes.fromhex(getattr(row, name)[5:]) for row in rows] for name in ("checksum", "blocks")}
    return write_table(data_set, manifest, pa.record_batch([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA))


def write_table(data_set: StoragePath, manifest: Manifest, batch: Any) -> Manifest:
    """Write the table of shards, then the manifest."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
    content, table = sink.getvalue().to_pybytes(), ShardTable(batch)
    data_set.write(TABLE_NAME, content)
    splits = {split: table.of_split(split) for split in ("train", "validation")}
    records = {name: SplitRecord(shards=len(part), longest=int(part.tokens.max(initial=0))) for name, part in splits.items()}
    record = TableRecord(checksum=checksum_of(content), **records)
    listed = tuple(table) if len(table) <= LISTED else ()
    return write_manifest(data_set, manifest.model_copy(update={"shards": listed, "table": record}))


class ShardTable(Sequence[Shard]):
    """Shards of a data set, or of one split, as the rows of a mapped table. Columns are arrays without a copy."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.documents, self.tokens, self.bytes, self.size, self.tokens_at, self.first_block = map(self._numbers, NUMBERS)

    def _numbers(self, name: str) -> NDArray[np.int64]:
        # Arrow's to_numpy imports pandas, which takes half a second in every rank
        numbers: NDArray[np.int64] = np.from_dlpack(self._batch.column(name))  # type: ignore[assignment]
        return numbers

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(len(self)))]
        if number >= len(self):
            raise IndexError(number)
        row = {name: self._batch.column(name)[number].as_py() for name in Shard.model_fields}
        row |= {name: f"xxh3:{row[name].hex()}" for name in ("checksum", "blocks")}
        return Shard.model_construct(**row)

    def path(self, number: int) -> str:
        """Return the path of a shard, without the rest of its row."""
        return str(self._batch.column("path")[number].as_py())

    def of_split(self, split: str) -> "ShardTable":
        """Return the shards of one split, in order: neighbours in the table."""
        column = self._batch.column("split")
        names, codes = column.dictionary.to_pylist(), np.from_dlpack(column.indices)
        if split not in names:
            return ShardTable(self._batch.slice(0, 0))
        first, last = np.searchsorted(codes, [names.index(split), names.index(split) + 1])
        return ShardTable(self._batch.slice(int(first), int(last - first)))


def open_table(path: Path, data_set: StoragePath, manifest: Manifest) -> ShardTable:
    """Map the table at `path`, the data set's or a copy, and verify it. Raises DataError if it is damaged."""
    name = f"{data_set.url}/{TABLE_NAME}"
    try:
        with pa.memory_map(str(path)) as file:
            buffer = file.read_buffer()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{name}: no such file; copy the data set again from its source") from None
    if (checksum := checksum_of(buffer)) != manifest.table.checksum:
        raise DataError(
            f"{name}: expected checksum {manifest.table.checksum}, found {checksum}; copy the data set again from its source"
        )
    return ShardTable(pa.ipc.open_file(buffer).get_batch(0))
