"""Byte streams from any file system: retried reads, bounded decompression, checksums of what is read."""

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from typing import IO, Any

import xxhash
import zstandard

from ropewalk.cluster.errors import StorageError
from ropewalk.cluster.storage import StoragePath

MIB = 1 << 20
REMOTE_BUFFER_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
SLICE_BYTES = 1024  # compressed input fed at once; expands to at most 32 MiB (4 bytes make a block of 128 KiB)


class DamagedStreamError(Exception):
    """A compressed file ends too early or does not decode; everything read before is valid."""


def split_url(url: str) -> tuple[StoragePath, str]:
    """Split the URL of a file into its directory and its name."""
    folder, _, name = url.rpartition("/")
    return StoragePath(folder or "/"), name


class _RangeFile(io.RawIOBase):
    """Remote file as a seekable stream; each read is one range request, retried on its own."""

    def __init__(self, folder: StoragePath, name: str) -> None:
        self.folder, self.file_name, self.length, self.position = folder, name, folder.size(name), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(base + offset, 0)
        return self.position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self.length - self.position)
        if size <= 0:
            return 0
        data = self.folder.read(self.file_name, self.position, self.position + size)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def open_file(folder: StoragePath, name: str) -> IO[bytes]:
    """Open a file as a seekable stream. Raises FileNotFoundError, or StorageError if the store stays unreachable."""
    if folder.local is not None:
        return (folder.local / name).open("rb")
    return io.BufferedReader(_RangeFile(folder, name), REMOTE_BUFFER_BYTES)


class HashedReader:
    """Reads a stream in chunks and computes the checksum of the bytes in [start, end)."""

    def __init__(self, stream: IO[bytes], start: int = 0, end: int | None = None) -> None:
        self.stream, self.position, self.start, self.end = stream, stream.tell(), start, end
        self.digest = xxhash.xxh3_128()

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        data = self.stream.read(size)
        first = max(self.start - self.position, 0)
        last = len(data) if self.end is None else min(self.end - self.position, len(data))
        if first < last:
            self.digest.update(memoryview(data)[first:last])
        self.position += len(data)
        return data

    def drain(self) -> str:
        """Read to the end of the hashed range and return its checksum in hex."""
        while (self.end is None or self.position < self.end) and self.read():
            pass
        return self.digest.hexdigest()


def plain_chunks(source: HashedReader) -> Iterator[bytes]:
    """Yield the chunks of an uncompressed stream."""
    while data := source.read():
        yield data


def gzip_chunks(source: HashedReader) -> Iterator[bytes]:
    """Decompress a gzip stream of any number of members in bounded chunks. Raises DamagedStreamError."""
    member, inside, members = zlib.decompressobj(31), False, 0
    while data := source.read():
        while data:
            if not inside and members and not (data := data.lstrip(b"\0")):  # padding after the last member is legal
                break
            inside = True
            try:
                out = member.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                raise DamagedStreamError(f"gzip: {error}") from None
            if out:
                yield out
            data = member.unconsumed_tail
            if member.eof:
                data, member, inside, members = member.unused_data, zlib.decompressobj(31), False, members + 1
    while inside and (out := member.decompress(b"", CHUNK_BYTES)):  # output that the last input still holds back
        yield out
    if inside and not member.eof:
        raise DamagedStreamError("gzip: the file ends in the middle of the stream")


def zstd_chunks(source: HashedReader) -> Iterator[bytes]:
    """Decompress a zstd stream of any number of frames in bounded chunks. Raises DamagedStreamError."""
    fresh: Callable[[], Any] = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    frame, inside = fresh(), False
    while data := source.read():
        for at in range(0, len(data), SLICE_BYTES):
            piece = data[at : at + SLICE_BYTES]
            while piece:
                inside = True
                try:
                    out = frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise DamagedStreamError(f"zstd: {error}") from None
                if out:
                    yield out
                piece = b""
                if frame.eof:
                    piece, frame, inside = frame.unused_data, fresh(), False
    if inside:
        raise DamagedStreamError("zstd: the file ends in the middle of a frame")


CHUNKS = {"lines": plain_chunks, "gzip": gzip_chunks, "zstd": zstd_chunks}  # by the kind of an input file


@contextmanager
def naming_full_disk(where: str) -> Iterator[None]:
    """Turn `no space left` into a StorageError that names the location and says that committed work is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in {ENOSPC, EDQUOT}:
            raise
        raise StorageError(f"{where}: no space left on device; free some space and run again: committed work is kept") from error
