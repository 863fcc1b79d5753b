"""Write one rank's file of a checkpoint, and read ranges of it, each block of which is verified."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.file_layout import BLOCK_BYTES, FileLayout, RankFile
from ropewalk.sharding.checkpoints.manifest import FileRecord, checksum


def write_rank_file(folder: StoragePath, name: str, layout: RankFile, data: Any) -> FileRecord:
    """Write the data of a rank, an array of bytes, with checksums of its blocks in front."""
    sums = np.zeros(layout.num_blocks, "<u8")
    with folder.create(name) as stream:
        stream.seek(layout.data_start)
        for number, block in enumerate(_blocks(layout, data)):
            sums[number] = xxhash.xxh3_64_intdigest(block)
            stream.write(block)  # no more at once: for longer writes the kernel looks for large pages, which may take long
        head = layout.header + sums.tobytes()
        stream.seek(0)
        stream.write(head)
    return FileRecord(path=name, size=layout.data_start + layout.size, checksum=checksum(head))


def write_rank_memory(content: memoryview, name: str, layout: RankFile) -> FileRecord:
    """Complete a file in memory that has the data of a rank already: write header and checksums in front of it."""
    blocks = _blocks(layout, content[layout.data_start :])
    head = layout.header + np.fromiter(map(xxhash.xxh3_64_intdigest, blocks), "<u8", len(blocks)).tobytes()
    content[: layout.data_start] = head
    return FileRecord(path=name, size=layout.data_start + layout.size, checksum=checksum(head))


def is_damaged(path: Path, layout: RankFile) -> bool:
    """Return True if a rank's file on this machine does not match its header or its checksums."""
    content = np.memmap(path, np.uint8, "r")
    if content.size != layout.data_start + layout.size or not content[: layout.data_start].tobytes().startswith(layout.header):
        return True
    sums = np.frombuffer(content, "<u8", layout.num_blocks, len(layout.header))
    blocks = _blocks(layout, content[layout.data_start :])
    return any(xxhash.xxh3_64_intdigest(block.data) != expected for block, expected in zip(blocks, sums, strict=True))


def _blocks(layout: RankFile, data: Any) -> list[Any]:
    return [data[start : start + BLOCK_BYTES] for start in range(0, layout.size, BLOCK_BYTES)]


class RankFileReader:
    """Verified reads of one rank's file. Raises CheckpointError where file, header or table do not match the manifest."""

    def __init__(self, folder: StoragePath, record: FileRecord, layouts: FileLayout, rank: int) -> None:
        self.folder, self.record, self.layout = folder, record, layouts.file(rank)
        self._contents = partial(layouts.contents, rank)
        layout = self.layout
        try:
            size = folder.size(record.path)
            if size != record.size:
                raise CheckpointError(f"{record.path} has {size} bytes instead of {record.size}")
            head = folder.read(record.path, 0, layout.data_start)
        except FileNotFoundError:
            raise CheckpointError(f"{record.path} is missing") from None
        if checksum(head) != record.checksum or not head.startswith(layout.header):
            raise CheckpointError(f"{record.path}: header or table of blocks does not match its checksum")
        self._sums = np.frombuffer(head, "<u8", offset=len(layout.header))

    def read(self, start: int, end: int) -> Any:
        """Return bytes [start, end) of the data, as an array. Raises CheckpointError if a block of them is damaged."""
        first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        low, high = first * BLOCK_BYTES, min(last * BLOCK_BYTES, self.layout.size)
        try:
            raw = self.folder.read(self.record.path, self.layout.data_start + low, self.layout.data_start + high)
        except FileNotFoundError:
            raise CheckpointError(f"{self.record.path} is missing") from None
        data = np.frombuffer(bytearray(raw), np.uint8)  # a copy, since torch wants memory that may be written
        for number in range(first, last):
            block = data[number * BLOCK_BYTES - low : (number + 1) * BLOCK_BYTES - low]
            if xxhash.xxh3_64_intdigest(block.data) != self._sums[number]:
                where = number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self.layout.size)
                holds = [name for name, begin, stop in self._contents() if begin < where[1] and stop > where[0]]
                others = f" and {len(holds) - 1} other tensors" if len(holds) > 1 else ""
                raise CheckpointError(
                    f"{self.record.path}: block {number} does not match its checksum; it holds {holds[0]}{others}"
                )
        return data[start - low : end - low]

    def verify(self) -> Iterator[str]:
        """Read the whole file; yields the problem of each damaged block."""
        for number in range(self.layout.num_blocks):
            try:
                self.read(number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self.layout.size))
            except CheckpointError as error:
                yield str(error)
