"""run.yaml: written quickly for a thousand runs that differ in a seed, and read in part where a part is enough."""

import re
import textwrap
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

HEAD_BYTES = 1 << 15  # holds all but a long diff, which comes last

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

# where a key's value ends: at the next line that is neither indented further, nor an item of its list, nor empty
_TOP_END = re.compile(r"\n(?![ \-\n])")
_INNER_END = re.compile(r"\n(?!  [ \-]|\n)")
_LISTED = {"job": None, "config": "steps", "resources": "nodes", "cluster": None, "created": None}


class _Dumper(_Base):  # type: ignore[misc]
    """People read the file: a list that occurs twice is written twice, not once with an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_record(run_id: str, record: Mapping[str, Any], known: dict[Any, str]) -> str:
    """A record as YAML. `known` keeps the text of parts from one record to the next, as long as all of them live."""
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
    """The whole record. Raises FileNotFoundError."""
    record: dict[str, Any] = yaml.load(path.read_bytes(), Loader=_Loader)
    return record


def read_listed(path: Path) -> dict[str, Any] | None:
    """What lists of runs show (job, cluster, created, resources.nodes, config.steps), from the file's beginning.

    None where the beginning does not tell, as in a file that a person wrote, or there is no file.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(HEAD_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
    listed: dict[str, Any] = {}
    for key, inner in _LISTED.items():
        block = _block(text, f"\n{key}:", _TOP_END)
        if block is None:
            return None
        if inner is None:
            listed[key] = _parse(block)[key]
        else:
            part = _block(block, f"\n  {inner}:", _INNER_END)
            listed[key] = _parse(part) if part else {}
    return listed


def _block(text: str, start: str, end: re.Pattern[str]) -> str | None:
    """The lines of one key, or None if it is not there or may be cut short."""
    first = text.find(start)
    last = end.search(text, first + 1) if first >= 0 else None
    return text[first : last.start() + 1] if last else None


@lru_cache(maxsize=1024)
def _parse(text: str) -> Mapping[str, Any]:
    parsed: dict[str, Any] = yaml.load(text, Loader=_Loader)  # most runs have most of it in common
    return parsed
