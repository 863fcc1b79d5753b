"""A large compressed file, which one alone can read, cut into pieces of whole lines that all can work on."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import xxhash
import zstandard

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.inputs.files import InputFile
from ropewalk.datapipe.inputs.streams import (
    MIB,
    DamagedStreamError,
    HashedReader,
    gzip_chunks,
    naming_full_disk,
    open_file,
    place_of,
    zstd_chunks,
)

EXPANSION = 4  # how much larger text is than its compressed form, roughly
LEVEL = 1  # pieces are read once, soon


@dataclass(frozen=True, kw_only=True)
class SplitFile:
    """The pieces that a compressed file was cut into, by their sizes on disk, and what is wrong with the file, if anything."""

    url: str
    sizes: tuple[int, ...]
    damage: str | None = None


def files_to_split(files: Sequence[InputFile], unit_mib: float) -> list[InputFile]:
    """The compressed files of JSON lines that hold more than a unit."""
    return [file for file in files if file.kind in {"gzip", "zstd"} and file.size * EXPANSION > unit_mib * MIB]


def piece_name(url: str, piece: int) -> str:
    """The file of a piece, below the work area."""
    return f"split/{xxhash.xxh3_64_hexdigest(url.encode())}-{piece:05d}.jsonl.zst"


def _done_name(url: str) -> str:
    return f"split/{xxhash.xxh3_64_hexdigest(url.encode())}.json"


def read_split(file: InputFile, work: StoragePath) -> SplitFile | None:
    """What a file was split into, or None where it was not, or not to its end."""
    try:
        found = json.loads(work.read(_done_name(file.url)))
    except FileNotFoundError:
        return None
    return SplitFile(url=found["url"], sizes=tuple(found["sizes"]), damage=found["damage"])


def pieces_of(file: InputFile, found: SplitFile, work: StoragePath) -> list[InputFile]:
    """The pieces of a file as files, under its own name."""
    return [
        InputFile(url=f"{work.url}/{piece_name(file.url, piece)}", name=file.name, size=size, kind="zstd")
        for piece, size in enumerate(found.sizes)
    ]


def split_file(file: InputFile, unit_mib: float, work: StoragePath) -> SplitFile:
    """Write the pieces of a file, each of about a unit; a pure function of the file. The record is written last."""
    place, name = place_of(file.url)
    sizes: list[int] = []
    damage: str | None = None
    with naming_full_disk(work.url), open_file(place, name) as stream:
        chunks = (gzip_chunks if file.kind == "gzip" else zstd_chunks)(HashedReader(stream))
        lines = _Lines(chunks)
        while not lines.ended:
            with work.create(piece_name(file.url, len(sizes))) as out:
                packer = zstandard.ZstdCompressor(level=LEVEL).compressobj()
                size = 0
                for data in lines.piece(max(int(unit_mib * MIB), 1)):
                    size += out.write(packer.compress(data))
                size += out.write(packer.flush())
            sizes.append(size)
        damage = lines.damage
    done = SplitFile(url=file.url, sizes=tuple(sizes), damage=damage)
    work.write(_done_name(file.url), json.dumps(asdict(done)).encode())
    return done


class _Lines:
    """Chunks of bytes, handed out in pieces that end with a line."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest, self.ended = chunks, b"", False
        self.damage: str | None = None
        self.complete = True  # what was handed out ends with a line

    def piece(self, limit: int) -> Iterator[bytes]:
        """At least `limit` bytes, up to the end of the line that is under way then."""
        held = 0
        while True:
            data, self.rest = self.rest or self._next(), b""
            if not data:
                self.ended = True
                if self.damage and self.complete:
                    yield b"\n"  # the last line of a damaged file is half a line, if only an empty one
                return
            at = data.find(b"\n", max(limit - held - 1, 0)) if held + len(data) >= limit else -1
            if at >= 0:
                yield data[: at + 1]
                self.complete = True
                self.rest = data[at + 1 :]
                if not self.rest:
                    self.rest = self._next()
                    self.ended = not self.rest and not self.damage
                return
            held += len(data)
            self.complete = data.endswith(b"\n")
            yield data

    def _next(self) -> bytes:
        try:
            return next(self.chunks, b"")
        except DamagedStreamError as error:
            self.damage = str(error)
            return b""
