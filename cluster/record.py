"""run.yaml: written quickly for a thousand runs that differ in a seed, and read in part where a part is enough."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HEAD_BYTES = 1 << 15  # holds all but a long diff, which comes last

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_TOP_BLOCK = re.compile(r"^(\w+):.*\n(?:[ \-].*\n|\n)*", re.MULTILINE)
_INNER_BLOCK = re.compile(r"^  (\w+):.*\n(?:  [ \-].*\n|\n)*", re.MULTILINE)
_LISTED = {"job": None, "config": "steps", "resources": "nodes", "cluster": None, "created": None}


class _Dumper(_Base):  # type: ignore[misc]
    """People read the file: a list that occurs twice is written twice, not once with an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_record(run_id: str, record: Mapping[str, Any], known: dict[Any, str]) -> str:
    """A record as YAML. `known` keeps the text of parts from one record to the next, as long as all of them live."""
    parts = [f"run: {run_id}\n"]
    for key, value in record.items():
        same = (key, id(value))  # what the runs of one submission share is one object
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

    None where the beginning does not tell, as in a file that a person wrote. Raises FileNotFoundError.
    """
    with path.open("rb") as stream:
        raw = stream.read(HEAD_BYTES)
    blocks = [(found[1], found[0]) for found in _TOP_BLOCK.finditer(raw.decode(errors="replace"))]
    if len(raw) == HEAD_BYTES:
        blocks = blocks[:-1]  # may be cut short
    parts = dict.fromkeys(_LISTED, "")
    for key, block in blocks:
        inner = _LISTED.get(key)
        if inner is not None:
            wanted = "".join(found[0] for found in _INNER_BLOCK.finditer(block) if found[1] == inner)
            parts[key] = f"{key}:\n{wanted}" if wanted else f"{key}: {{}}\n"
        elif key in parts:
            parts[key] = block
    if not all(parts.values()):
        return None
    listed: dict[str, Any] = yaml.load("".join(parts.values()), Loader=_Loader)
    return listed
