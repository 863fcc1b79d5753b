"""Reading and writing of run.yaml, optimized for many runs that share most of their content."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.errors import DamagedFileError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

# a key starts at a line that is not indented, not a list item and not empty; a key of the next level is indented by two spaces
_SECTION = re.compile(r"\n(?![\s\-]|$)")
_PART = re.compile(r"\n(?=  [^\s\-])")
_PLAIN = re.compile(r"\s*(\w+): (?:([1-9]\d*)|([a-z]+-\d+-[\w-]+))\n?")  # an integer, or an id: what most runs differ in


class _Dumper(_Base):  # type: ignore[misc]
    """Dumper without anchors and aliases: a repeated value is written in full, which is easier to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def without_diffs(records: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Split the code's diffs off records: a diff may have a megabyte, and every rank reads run.yaml."""
    # objects shared by the runs of a submission must stay shared, so that `dump_record` formats them only once
    shared: dict[int, dict[str, Any]] = {}
    written, diffs = [], []
    for record in records:
        code = record.get("code") or {}
        diffs.append(str(code.get("diff") or ""))
        if "diff" in code:
            shared.setdefault(id(code), {key: value for key, value in code.items() if key != "diff"})
            record = {**record, "code": shared[id(code)]}  # noqa: PLW2901
        written.append(record)
    return written, diffs


def dump_record(run_id: str, record: Mapping[str, Any], cache: dict[Any, str]) -> str:
    """Format a record as YAML. `cache` holds formatted parts for further records; keep all records alive while it is used."""
    parts = [f"run: {run_id}\n"]
    for key, value in record.items():
        # by identity, since the runs of a submission share large objects
        cache_key = (key, id(value) if isinstance(value, dict) else repr(value))
        if cache_key not in cache:
            cache[cache_key] = _dump_section(key, value, cache)
        parts.append(cache[cache_key])
    return "".join(parts)


def _dump_section(key: str, value: Any, cache: dict[Any, str]) -> str:
    if not isinstance(value, dict) or not value:
        return _dump({key: value})
    parts = [f"{key}:\n"]
    for inner, content in value.items():
        cache_key = (key, inner, repr(content))
        if cache_key not in cache:
            cache[cache_key] = textwrap.indent(_dump({inner: content}), "  ")
        parts.append(cache[cache_key])
    return "".join(parts)


def _dump(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; do not change its parts, which are cached and shared. Raises FileNotFoundError, DamagedFileError."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise _damaged(path, "not text") from None
    try:
        return _read_parts(text)
    except (yaml.YAMLError, TypeError, ValueError):  # the file was edited and is formatted differently
        return _read_whole(text, path)


def _read_whole(text: str, path: Path) -> dict[str, Any]:
    try:
        record = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise _damaged(path, f"not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(record, dict):
        raise _damaged(path, "empty" if record is None else f"a {type(record).__name__} instead of keys with values")
    return record


def _damaged(path: Path, problem: str) -> DamagedFileError:
    return DamagedFileError(f"{path}: damaged: {problem}; restore the file, or move {path.parent} away")


def _read_parts(text: str) -> dict[str, Any]:
    """Parse a record by the parts that `dump_record` writes: the keys of the first two levels."""
    record: dict[str, Any] = {}
    for section in _SECTION.split(text):
        record |= _parse_section(section)
    return record


@lru_cache(maxsize=1024)  # the runs of a submission have most sections in common, and most parts of the others
def _parse_section(section: str) -> dict[str, Any]:
    key, _, body = section.partition(":\n")
    if key.isidentifier() and body.startswith("  "):
        return {key: {name: value for part in _PART.split(body) for name, value in _parse(part).items()}}
    return _parse(section)


@lru_cache(maxsize=1024)
def _parse(text: str) -> dict[str, Any]:
    if match := _PLAIN.fullmatch(text):  # a tenth of the time that YAML takes
        return {match[1]: int(match[2]) if match[2] else match[3]}
    values = yaml.load(text, Loader=_Loader)
    if not isinstance(values, dict):
        raise TypeError("not a mapping")
    return values
