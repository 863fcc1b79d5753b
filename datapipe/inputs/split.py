"""Split a large compressed file, which only one task can read, into pieces of whole lines that many tasks can read."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import xxhash
import zstandard

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.inputs.files import InputFile
from ropewalk.datapipe.inputs.streams import CHUNKS, MIB, DamagedStreamError, HashedReader, naming_full_disk, open_file, split_url

EXPANSION = 4  # rough ratio of text to compressed size
LEVEL = 1  # low: pieces are read once, soon


@dataclass(frozen=True, kw_only=True)
class SplitFile:
    """Pieces of a compressed file: their sizes on disk, and the damage of the file, if any."""

    url: str
    sizes: tuple[int, ...]
    damage: str | None = None


def files_to_split(files: Sequence[InputFile], unit_mib: float) -> list[InputFile]:
    """Return the compressed JSON-lines files that hold more than a unit."""
    return [file for file in files if file.kind in {"gzip", "zstd"} and file.size * EXPANSION > unit_mib * MIB]


def piece_name(url: str, piece: int) -> str:
    """Path of a piece in the work area."""
    return f"split/{xxhash.xxh3_64_hexdigest(url.encode())}-{piece:05d}.jsonl.zst"


def _done_name(url: str) -> str:
    return f"split/{xxhash.xxh3_64_hexdigest(url.encode())}.json"


def read_split(file: InputFile, work: StoragePath) -> SplitFile | None:
    """Return the record of a finished split, or None."""
    try:
        record = json.loads(work.read(_done_name(file.url)))
    except FileNotFoundError:
        return None
    return SplitFile(url=record["url"], sizes=tuple(record["sizes"]), damage=record["damage"])


def pieces_of(file: InputFile, split: SplitFile, work: StoragePath) -> list[InputFile]:
    """Return the pieces of a file as input files with the name of the original."""
    return [
        InputFile(url=f"{work.url}/{piece_name(file.url, piece)}", name=file.name, size=size, kind="zstd")
        for piece, size in enumerate(split.sizes)
    ]


def split_file(file: InputFile, unit_mib: float, work: StoragePath) -> SplitFile:
    """Write the pieces of a file, each about a unit, and then the record of the split. A pure function of the file."""
    folder, name = split_url(file.url)
    sizes: list[int] = []
    damage: str | None = None
    with naming_full_disk(work.url), open_file(folder, name) as stream:
        lines = _Lines(CHUNKS[file.kind](HashedReader(stream)))
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
    """Chunks of bytes, regrouped into pieces that end with a line."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest, self.ended = chunks, b"", False
        self.damage: str | None = None
        self.complete = True  # the output so far ends with a line

    def piece(self, limit: int) -> Iterator[bytes]:
        """Yield at least `limit` bytes, up to the next end of a line."""
        held = 0
        while True:
            data, self.rest = self.rest or self._next(), b""
            if not data:
                self.ended = True
                if self.damage and self.complete:
                    yield b"\n"  # readers drop the last line of a damaged file, so it must be incomplete or empty
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
