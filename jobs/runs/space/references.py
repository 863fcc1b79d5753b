"""References to a run: by the registry, by its parent and children, and by runs that read its model or its data set."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.names import PREPARED_DATA
from ropewalk.jobs.runs.models.model_versions import registered_models


def references_to(run: RunDir, others: Sequence[RunDir]) -> Iterator[str]:
    """Yield a phrase for each version of the registry and each of the `others` that refers to a run."""
    for model in registered_models(run.path.parent):
        for version in model.versions():
            if version.removed is None and (version.run == run.id or _inside(version.path, [run.path])):
                yield f"{version.id} of the registry"
    output = (run.record.get("config") or {}).get("output")
    data_sets = [Path(output)] if isinstance(output, str) and Path(output).is_absolute() else []
    for other in others:
        if other.id == run.id:
            continue
        if other.record.get("parent") == run.id:
            yield f"{other.id}, which it started"
        elif run.record.get("parent") == other.id:
            yield f"{other.id}, which started it"
        else:
            for key, value in _strings(_named_by(other)):
                if value.partition("@")[0] == run.id or _inside(value, [run.path]):
                    yield f"{other.id} ({key})"
                    break
                if key != "output" and _inside(value, data_sets):
                    yield f"{other.id} ({key}), which reads its data set"
                    break


def _named_by(run: RunDir) -> dict[str, Any]:
    """Return all values by which a run can name other runs and data: its keys, the opened weights, its prepared data set."""
    prepared = read_json(run.path / PREPARED_DATA) or {}
    path = str(prepared.get("path", ""))
    return {
        **(run.record.get("config") or {}),
        "weights": (read_json(run.model_record) or {}).get("weights"),
        "prepared": path if "://" in path or not path else os.path.normpath(run.path / path),
    }


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of nested values, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner, key)


def _inside(value: Path | str | None, folders: Sequence[Path]) -> bool:
    """Return True if a path is one of the folders or lies inside one."""
    path = Path(value or "")
    return path.is_absolute() and any(path == folder or folder in path.parents for folder in folders)
