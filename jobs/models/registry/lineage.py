"""Lineage of a model: run, code, data sets, and base models down to random weights."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.runs.models.inputs import READS_DATA, data_set, paths_in
from ropewalk.jobs.runs.models.model_versions import DIRECTORIES, RegisteredModel
from ropewalk.jobs.training.loop.architecture.model_record import read_record

MOST_ANCESTORS = 20
_PREPARED = "data.json"  # in a run of finetune: path of the data set prepared from its conversations
_MOST_BYTES = 1 << 30  # larger files are not hashed
_CODE = ("commit", "branch", "dirty", "uncommitted", "snapshot")


def lineage_of(source: RunDir | Path, step: int | None, root: Path) -> dict[str, Any]:
    """Return the lineage of a run's checkpoint or a directory: {run, step, job, code, data, bases: [{role, ...}]}."""
    return _lineage(source, step, root, MOST_ANCESTORS)


def _lineage(source: RunDir | Path, step: int | None, root: Path, most: int) -> dict[str, Any]:
    if isinstance(source, Path):
        exporter = exported_by(source, root)
        if exporter is None or most <= 0:
            return {"path": str(source)}
        return {"path": str(source), **_lineage(*exporter, root, most - 1)}
    try:
        record = source.record
    except RopewalkError:
        return {"run": source.id, "step": step, "missing": "the run's directory no longer exists"}
    code = record.get("code") or {}
    bases = [
        {"role": role, **_lineage(base, base_step, root, most - 1)} for role, base, base_step in bases_of(source) if most > 0
    ]
    return {
        **{"run": source.id, "step": step, "job": record.get("job"), "created": record.get("created")},
        "code": {key: code[key] for key in _CODE if code.get(key) is not None},
        "data": list(_data(source)),
        "bases": bases,
    }


def bases_of(run: RunDir) -> Iterator[tuple[str, RunDir | Path, int | None]]:
    """Yield the models that a run started from or learned from: (model | teacher | start_from, run or directory, step)."""
    config = run.record.get("config") or {}
    record = read_record(run)
    if record is not None and record.weights is not None:  # the weights that were actually opened, with the step
        weights = record.weights
        if weights.path is not None:
            yield "model", Path(weights.path), None
        elif weights.run is not None:
            yield "model", _beside(run, weights.run), weights.step
    else:
        yield from _resolve_named(run, "model", config.get("model"))
    for key in ("teacher", "reference", "start_from"):
        yield from _resolve_named(run, key, config.get(key))


def _resolve_named(run: RunDir, role: str, value: Any) -> Iterator[tuple[str, RunDir | Path, int | None]]:
    keys = value if isinstance(value, Mapping) else {"run": value}
    ref, step = keys.get("run") or keys.get("path"), keys.get("step")
    if not isinstance(ref, str):
        return
    name, at, digits = ref.rpartition("@")
    if at and digits.isdigit():
        ref, step = name, int(digits)
    beside = _beside(run, ref)
    if (beside.path / "run.yaml").is_file():
        yield role, beside, step
    elif Path(ref).is_absolute():
        yield role, Path(ref), None


def _beside(run: RunDir, reference: str) -> RunDir:
    return RunDir(run.path.parent / Path(reference).name)


def exported_by(directory: Path, root: Path) -> tuple[RunDir, int | None] | None:
    """Return the run and step whose checkpoint a directory holds, by the runs' export events, or None."""
    if directory.parent.name == DIRECTORIES and directory.name.isdigit():  # a directory of the registry
        version = RegisteredModel(root, directory.parent.parent.name).version(int(directory.name))
        return (RunDir(root / version.run), version.step) if version.run else None
    exporter = None
    for run in RunDir.all(root):
        if run.model_record.is_file():
            for event in run.read_events():
                if event.get("event") == "exported" and event.get("directory") == str(directory):
                    exporter = (run, event.get("step"))
    return exporter


def ancestors(lineage: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a lineage, then its base models, the nearest first."""
    yield lineage
    for base in lineage.get("bases") or ():
        yield from ancestors(base)


def data_paths(run: RunDir) -> list[str]:
    """Return the data sets and files that a run names, and the data set prepared from its conversations."""
    config = run.record.get("config") or {}
    paths = [path for key in READS_DATA for path in paths_in(config.get(key))]
    if prepared := read_json(run.path / _PREPARED):
        paths.append(os.path.normpath(run.path / str(prepared["path"])))
    return list(dict.fromkeys(paths))


def _data(run: RunDir) -> Iterator[dict[str, Any]]:
    """Yield a run's training data: data sets with the hash of their manifests, files with that of their bytes."""
    for path in data_paths(run):
        dataset = data_set(path)
        if dataset is not None:
            yield {"name": dataset.name, **dataset.metadata}
        elif (file := Path(path)).is_file():
            yield {"name": file.name, "path": path, "bytes": file.stat().st_size, **_digest(file)}
        else:
            yield {"name": file.name, "path": path}


def _digest(file: Path) -> dict[str, str]:
    if file.stat().st_size > _MOST_BYTES:
        return {}
    with file.open("rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
