"""run.yaml: written and read quickly, for a thousand runs that differ in a seed."""

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

# a key begins at a line that is neither indented, nor an item of a list, nor empty; one of the level below two spaces further in
_SECTION = re.compile(r"\n(?![\s\-]|$)")
_PART = re.compile(r"\n(?=  [^\s\-])")


class _Dumper(_Base):  # type: ignore[misc]
    """Writes a list that occurs twice in full both times, and not once with an anchor: people read the file."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def without_diffs(records: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Take the code's diff out of records: it may be a megabyte, and every rank reads run.yaml."""
    # what the runs of one submission share is one object, and stays one: `dump_record` writes it out once
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


def dump_record(run_id: str, record: Mapping[str, Any], known: dict[Any, str]) -> str:
    """Write a record as YAML. `known` keeps the text of parts for the next record, as long as the caller keeps all of them."""
    parts = [f"run: {run_id}\n"]
    for key, value in record.items():
        # what the runs of one submission share is one object; its text may be long
        same = (key, id(value) if isinstance(value, dict) else repr(value))
        if same not in known:
            known[same] = _dump_section(key, value, known)
        parts.append(known[same])
    return "".join(parts)


def _dump_section(key: str, value: Any, known: dict[Any, str]) -> str:
    if not isinstance(value, dict) or not value:
        return _dump({key: value})
    parts = [f"{key}:\n"]
    for inner, content in value.items():
        same = (key, inner, repr(content))
        if same not in known:
            known[same] = textwrap.indent(_dump({inner: content}), "  ")
        parts.append(known[same])
    return "".join(parts)


def _dump(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read_record(path: Path) -> dict[str, Any]:
    """Read a whole record; what many records share is parsed once, and must not be changed.

    Raises FileNotFoundError, DamagedFileError.
    """
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise _damaged(path, "it is no text") from None
    try:
        return _read_parts(text)
    except (yaml.YAMLError, TypeError, ValueError):  # a person wrote it in another way
        return _read_whole(text, path)


def _read_whole(text: str, path: Path) -> dict[str, Any]:
    try:
        record = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise _damaged(path, f"it is no YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(record, dict):
        raise _damaged(path, "it has no keys" if record is None else f"it is a {type(record).__name__}, not keys with values")
    return record


def _damaged(path: Path, how: str) -> DamagedFileError:
    return DamagedFileError(f"{path}: damaged: {how}; restore it, or move {path.parent} away")


def _read_parts(text: str) -> dict[str, Any]:
    """Read a record by the parts that `dump_record` writes: the keys, and those one level below."""
    record: dict[str, Any] = {}
    for section in _SECTION.split(text):
        key, _, body = section.partition(":\n")
        if key.isidentifier() and body.startswith("  "):
            record[key] = {name: value for part in _PART.split(body) for name, value in _parse(part).items()}
        else:
            record |= _parse(section)
    return record


@lru_cache(maxsize=1024)
def _parse(text: str) -> dict[str, Any]:
    found = yaml.load(text, Loader=_Loader)
    if not isinstance(found, dict):
        raise TypeError("not a mapping")
    return found
