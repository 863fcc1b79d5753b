"""List the input files and cut them into units of work; both are pure functions of the existing files."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import parquet

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath, retry
from ropewalk.datapipe.inputs.streams import MIB, open_file, split_url

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
SUPPORTED = "*.jsonl, *.jsonl.gz, *.jsonl.zst, *.parquet, *.warc.gz, *.txt, *.md, *.rst, *.py"
MAGIC = re.compile(r"[*?\[]")
VERSIONS = ("ETag", "etag", "md5Hash", "mtime")  # version fields of S3, Azure and GCS; a local file only has its time
FILES_A_UNIT = 1000
SMALLEST_UNIT_MIB, LARGEST_UNIT_MIB = 4.0, 64.0
MOST_LISTED = 1000  # files that a submission looks at
NO_FILE = "no such file or directory"


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file of the input; `name` is relative to a folder of its pattern, `version` changes with the content."""

    url: str
    name: str
    size: int
    kind: str  # lines, gzip, zstd, parquet, text, warc, warc.gz; empty: unknown ending
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Input of one task: a byte range or row groups of one file, or small files. Checksums part `piece` of `pieces` of a file."""

    index: int
    files: tuple[InputFile, ...]
    start: int = 0  # byte of a `lines` file, row group of a `parquet` file
    end: int | None = None
    piece: int = 0
    pieces: int = 1
    split_piece: InputFile | None = None  # read in place of a compressed file that was split
    damage: str | None = None  # reason why the file ends after this piece

    @property
    def size(self) -> int:
        """Approximate number of bytes of input."""
        return sum(f.size for f in self.files) // self.pieces

    @property
    def label(self) -> str:
        first = self.files[0].url
        if len(self.files) > 1:
            return f"{first} and {len(self.files) - 1} more files"
        return f"{first} (part {self.piece + 1} of {self.pieces})" if self.pieces > 1 else first


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its ending, or None for an unknown ending."""
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
    """List every file of the patterns once, by path. Raises DataError for a pattern without files, or an unknown ending.

    Names are relative to the start of the pattern, or, if that would give two files one name, to the start of all patterns.
    """
    by_url: dict[str, InputFile] = {}
    for pattern in patterns:
        files = list(expand(pattern))
        if not files:
            raise DataError(f"input {pattern!r}: matches no file; check the path, or use ** to include subdirectories")
        unknown = [f.url for f in files if not f.kind]
        if unknown:
            raise DataError(
                f"input {pattern!r}: {unknown[0]!r} (and {len(unknown) - 1} more of {len(files)} files) has an"
                f" unsupported ending; narrow the pattern to one of {SUPPORTED}"
            )
        for file in files:
            by_url.setdefault(file.url, file)
    listed = [by_url[url] for url in sorted(by_url)]
    if len({file.name for file in listed}) == len(listed):
        return listed
    folders = {file.url.removesuffix(file.name) for file in listed}
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*(folder.split("/") for folder in folders), strict=False))
    start = "/".join(parts[0] for parts in shared)
    return [replace(file, name=file.url.removeprefix(start).lstrip("/")) for file in listed]


def first_files(key: str, pattern: str, local: Path) -> list[InputFile]:
    """Return up to MOST_LISTED local files of `pattern`, which is at `local` on this machine, by path.

    Raises DataError, naming `key`, if there is no file, or if one has an unknown ending.
    """
    is_glob = not local.exists() and bool(MAGIC.search(pattern))
    paths: Iterator[Path] = (Path(path) for path in glob.iglob(str(local), recursive=True)) if is_glob else iter([local])
    if local.is_dir():
        paths = (Path(folder, name) for folder, names in _walk(local) for name in names if not name.startswith("."))
    files = [
        InputFile(url=str(path), name=path.name, size=path.stat().st_size, kind=kind_of(path.name) or "")
        for path in sorted(islice((path for path in paths if path.is_file()), MOST_LISTED))
    ]
    if not files:
        remedy = "check the path, or use ** to include subdirectories" if is_glob else "check the path"
        raise DataError(f"{key} {pattern!r}: {'matches no file' if is_glob or local.exists() else NO_FILE}; {remedy}")
    if unknown := next((file.url for file in files if not file.kind), None):
        raise DataError(f"{key} {pattern!r}: {unknown} has an unsupported ending; narrow the pattern to one of {SUPPORTED}")
    return files


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield path, names


class _LinkedFiles(LocalFileSystem):  # type: ignore[misc]
    """Local files, following links to directories; fsspec skips these, and directories that it cannot read."""

    def walk(self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "raise", **options: Any) -> Any:
        """Walk all directories below a path. Raises OSError for one that cannot be read."""
        return super().walk(path, maxdepth, topdown, on_error="raise", **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> list[Any]:
        """List a directory; links are replaced by their targets."""
        entries = super().ls(path, detail=detail, **options)
        return (
            [self._follow(entry) for entry in entries if not entry["name"].endswith("/lost+found")] if detail else list(entries)
        )

    def _follow(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the properties of a link's target under the link's name."""
        if not entry["islink"] or not os.path.exists(entry["name"]):
            return entry
        info: dict[str, Any] = self.info(entry["name"])
        target, above = os.path.realpath(entry["name"]), Path(entry["name"]).parents
        if info["type"] == "directory" and target in map(os.path.realpath, above):  # also through other links
            raise DataError(f"{entry['name']}: links to a directory above itself; remove the link, or narrow the pattern")
        return info


def expand(pattern: str) -> Iterator[InputFile]:
    """List the files of a file, directory or glob; local links are followed. Raises DataError for an unreadable directory."""
    scheme = pattern.partition("://")[0] + "://" if "://" in pattern else ""
    magic = None if Path(pattern).exists() else MAGIC.search(pattern)  # a file may be called a[1].txt
    fixed = pattern[: magic.start()].rpartition("/")[0] if magic else pattern
    root = StoragePath(fixed or "/")
    fs = root.fs if root.local is None else _LinkedFiles()

    def list_entries() -> tuple[str, dict[str, dict[str, Any]]]:
        if fixed != pattern:
            return root.root, fs.glob(root.root + pattern[len(fixed) :], detail=True)
        if fs.isfile(root.root):
            return root.root.rpartition("/")[0], {root.root: fs.info(root.root)}
        return root.root, fs.find(root.root, detail=True)

    try:
        base, entries = retry(list_entries, f"list {pattern}")
    except FileNotFoundError:
        return
    except PermissionError as error:
        problem = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        raise DataError(f"input {pattern!r}: {problem}; check its permissions or the credentials") from None
    for path, info in sorted(entries.items()):
        name = path.removeprefix(base).lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if info.get("type") == "directory" or (hidden and fixed == pattern and len(entries) > 1):
            continue
        url = path if not scheme or "://" in path else scheme + path
        version = str(next((info[key] for key in VERSIONS if info.get(key)), ""))
        yield InputFile(url=url, name=name, size=int(info["size"]), kind=kind_of(name) or "", version=version)


def unit_size_mib(files: Iterable[InputFile], unit_mib: float | None) -> float:
    """Return the input per task: `unit_mib`, else a 64th of all input, between 4 and 64 MiB."""
    return unit_mib or min(max(sum(file.size for file in files) / 64 / MIB, SMALLEST_UNIT_MIB), LARGEST_UNIT_MIB)


def plan_units(
    files: Iterable[InputFile], unit_mib: float, split: Mapping[str, tuple[Sequence[InputFile], str | None]] | None = None
) -> list[Unit]:
    """Cut the input into units, in global order. `split`: pieces, and any damage, of each compressed file that was split."""
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
        split_pieces, damage = (split or {}).get(file.url, ((), None))
        for piece, piece_file in enumerate(split_pieces):
            unit = Unit(index=len(units), files=(file,), piece=piece, pieces=len(split_pieces), split_piece=piece_file)
            units.append(replace(unit, damage=damage) if piece == len(split_pieces) - 1 else unit)
        if split_pieces:
            continue
        ranges = _ranges(file, limit)
        for piece, (start, end) in enumerate(ranges):
            units.append(Unit(index=len(units), files=(file,), start=start, end=end, piece=piece, pieces=len(ranges)))
    flush()
    return units


def _ranges(file: InputFile, limit: int) -> list[tuple[int, int | None]]:
    """Return the ranges of a file: bytes of plain lines, row groups of parquet, one range for a compressed stream."""
    if file.size <= limit or file.kind in {"gzip", "zstd", "warc", "warc.gz"}:
        return [(0, None)]
    if file.kind == "lines":
        return [(start, min(start + limit, file.size)) for start in range(0, file.size, limit)]
    folder, name = split_url(file.url)
    try:
        with open_file(folder, name) as stream:
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
