"""List the input files and cut them into units of work; both are pure functions of the files that are there."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import parquet

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath, retry
from ropewalk.datapipe.inputs.streams import MIB, open_file, place_of

LINE_ENDINGS = {
    ".jsonl": "",
    ".ndjson": "",
    ".jsonl.gz": "gzip",
    ".ndjson.gz": "gzip",
    ".jsonl.zst": "zstd",
    ".ndjson.zst": "zstd",
}
PROSE_ENDINGS = (".txt", ".text", ".md", ".markdown", ".rst", ".tex")
CODE_ENDINGS = (".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".sql", ".toml")
TEXT_ENDINGS = PROSE_ENDINGS + CODE_ENDINGS
READ_HERE = "*.jsonl, *.jsonl.gz, *.jsonl.zst, *.parquet, *.warc.gz, *.txt, *.md, *.rst, *.py"
MAGIC = re.compile(r"[*?\[]")
VERSIONS = ("ETag", "etag", "md5Hash", "mtime")  # what a store tells of an object: S3, Azure, GCS; a file has a time alone
FILES_A_UNIT = 1000


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file of the input; `name` is relative to where its pattern starts, `version` changes when its content does."""

    url: str
    name: str
    size: int
    kind: str  # lines, gzip, zstd, parquet, text, warc, warc.gz; empty: its ending is not known
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one task reads: a byte range of one file, some of its row groups, or a group of small files.

    `piece` of `pieces` is the share of the file whose checksum this unit takes.
    """

    index: int
    files: tuple[InputFile, ...]
    start: int = 0  # bytes of a `lines` file, row groups of a `parquet` file
    end: int | None = None
    piece: int = 0
    pieces: int = 1
    held: InputFile | None = None  # the piece of a compressed file that was split, which is read in its place
    damage: str | None = None  # why the file ends behind this piece

    @property
    def size(self) -> int:
        """The approximate number of bytes of input."""
        return sum(f.size for f in self.files) // self.pieces

    @property
    def label(self) -> str:
        """The name of the unit in an error message."""
        first = self.files[0].url
        if len(self.files) > 1:
            return f"{first} and {len(self.files) - 1} more files"
        return f"{first} (part {self.piece + 1} of {self.pieces})" if self.pieces > 1 else first


def kind_of(name: str) -> str | None:
    """The kind of a file, by its ending; None for an ending that is not known."""
    lower = name.lower()
    for ending, compression in LINE_ENDINGS.items():
        if lower.endswith(ending):
            return compression or "lines"
    if lower.endswith((".warc", ".wet", ".warc.gz", ".wet.gz")):
        return "warc.gz" if lower.endswith(".gz") else "warc"
    if lower.endswith((".parquet", ".pq")):
        return "parquet"
    return "text" if lower.endswith(TEXT_ENDINGS) else None


def list_inputs(patterns: Sequence[str]) -> list[InputFile]:
    """List every file that the patterns name once, sorted by path.

    Raises DataError for a pattern that matches nothing and for a file with an ending that is not known.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        files = list(expand(pattern))
        if not files:
            raise DataError(f"input {pattern!r}: matches no file; check the path, or use ** to look into folders")
        unknown = [f.url for f in files if not f.kind]
        if unknown:
            raise DataError(
                f"input {pattern!r}: {unknown[0]!r} (and {len(unknown) - 1} more of {len(files)} files) has an ending"
                f" that is not read; narrow the pattern to one of {READ_HERE}"
            )
        for file in files:
            found.setdefault(file.url, file)
    return [found[url] for url in sorted(found)]


class _LinkedFiles(LocalFileSystem):  # type: ignore[misc]
    """This machine's files, through links to folders; fsspec passes over those, and over folders that it cannot read."""

    def walk(self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "raise", **words: Any) -> Any:
        """Every folder below a path. Raises OSError for one that cannot be read."""
        return super().walk(path, maxdepth, topdown, on_error="raise", **words)

    def ls(self, path: str, detail: bool = False, **words: Any) -> list[Any]:
        """What a folder holds."""
        found = super().ls(path, detail=detail, **words)
        return [self._followed(each) for each in found if not each["name"].endswith("/lost+found")] if detail else list(found)

    def _followed(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What is known of where a link leads to, under the link's own name."""
        if not entry["islink"] or not os.path.exists(entry["name"]):
            return entry
        found: dict[str, Any] = self.info(entry["name"])
        target, above = os.path.realpath(entry["name"]), Path(entry["name"]).parents
        if found["type"] == "directory" and target in map(os.path.realpath, above):  # by other links on the way there, too
            raise DataError(f"{entry['name']}: links to a folder that it lies in; remove the link, or narrow the pattern")
        return found


def expand(pattern: str) -> Iterator[InputFile]:
    """List the files of one pattern: a file, a directory (all files below it), or a glob; through links, on this machine.

    Raises DataError for a folder on the way that cannot be read.
    """
    scheme = pattern.partition("://")[0] + "://" if "://" in pattern else ""
    magic = None if Path(pattern).exists() else MAGIC.search(pattern)  # a file may be called a[1].txt
    fixed = pattern[: magic.start()].rpartition("/")[0] if magic else pattern
    place = StoragePath(fixed or "/")
    fs = place.fs if place.local is None else _LinkedFiles()

    def look() -> tuple[str, dict[str, dict[str, Any]]]:
        if fixed != pattern:
            return place.root, fs.glob(place.root + pattern[len(fixed) :], detail=True)
        if fs.isfile(place.root):
            return place.root.rpartition("/")[0], {place.root: fs.info(place.root)}
        return place.root, fs.find(place.root, detail=True)

    try:
        base, entries = retry(look, f"list {pattern}")
    except FileNotFoundError:
        return
    except PermissionError as error:
        said = ": ".join(str(each) for each in (error.filename, error.strerror or error) if each)
        raise DataError(f"input {pattern!r}: {said}; check its permissions or the credentials") from None
    for path, info in sorted(entries.items()):
        name = path.removeprefix(base).lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if info.get("type") == "directory" or (hidden and fixed == pattern and len(entries) > 1):
            continue
        url = path if not scheme or "://" in path else scheme + path
        version = str(next((info[key] for key in VERSIONS if info.get(key)), ""))
        yield InputFile(url=url, name=name, size=int(info["size"]), kind=kind_of(name) or "", version=version)


def plan_units(
    files: Iterable[InputFile], unit_mib: float, split: Mapping[str, tuple[Sequence[InputFile], str | None]] | None = None
) -> list[Unit]:
    """Cut the input into units, in global order; documents are ordered by unit, then by their position in it.

    `split` has the pieces of compressed files that were split, and what is wrong with the file.
    """
    limit = max(int(unit_mib * MIB), 1)
    units: list[Unit] = []
    group: list[InputFile] = []
    grouped = 0

    def flush() -> None:
        nonlocal grouped
        if group:
            units.append(Unit(index=len(units), files=tuple(group)))
            group.clear()
            grouped = 0

    for file in files:
        if file.kind == "text":
            if group and (len(group) >= FILES_A_UNIT or grouped + file.size > limit):
                flush()
            group.append(file)
            grouped += file.size
            continue
        flush()
        held, damage = (split or {}).get(file.url, ((), None))
        for piece, one in enumerate(held):
            broken = damage if piece == len(held) - 1 else None
            units.append(Unit(index=len(units), files=(file,), piece=piece, pieces=len(held), held=one, damage=broken))
        if held:
            continue
        ranges = _ranges(file, limit)
        for piece, (start, end) in enumerate(ranges):
            units.append(Unit(index=len(units), files=(file,), start=start, end=end, piece=piece, pieces=len(ranges)))
    flush()
    return units


def _ranges(file: InputFile, limit: int) -> list[tuple[int, int | None]]:
    """Where a file is cut: plain lines by bytes, parquet by row groups, a compressed stream nowhere."""
    if file.size <= limit or file.kind in {"gzip", "zstd", "warc", "warc.gz"}:
        return [(0, None)]
    if file.kind == "lines":
        return [(start, min(start + limit, file.size)) for start in range(0, file.size, limit)]
    place, name = place_of(file.url)
    try:
        with open_file(place, name) as stream:
            metadata = parquet.read_metadata(stream)
    except (pa.ArrowException, OSError):
        return [(0, None)]  # its reader records the damage
    ranges: list[tuple[int, int | None]] = []
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= limit or group == metadata.num_row_groups - 1:
            ranges.append((start, group + 1))
            start, size = group + 1, 0
    return ranges or [(0, None)]
