"""What is behind an answer, and which models learnt from a document: by the files of runs, data sets and the registry."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import MANIFEST_NAME, read_manifest
from ropewalk.jobs.models.registry.lineage import ancestors, bases_of, data_paths, lineage_of
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.runs.models.model_versions import find_version, registered_models
from ropewalk.jobs.runs.show.status import all_runs
from ropewalk.jobs.serving.feedback.answers import Answer, find_answer
from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.records import FOLDER

_MOST_BYTES = 256 << 20  # of a file of records that is searched line by line


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a document lies in what a run learnt from."""

    data: str
    file: str  # the shard below the data set, or the file itself
    split: str
    row: int


def trace_answer(number: str, root: Path | None = None) -> dict[str, Any] | None:
    """What is behind an answer: {answer, serve, version, lineage, feedback}; None: no serving run knows it."""
    for run in reversed(RunDir.all(root) if root else all_runs()):
        answer = find_answer(run, number) if (run.path / FOLDER).is_dir() else None
        if answer is not None:
            return {"answer": answer._asdict(), "serve": run.id, **_model_of(answer, run), "feedback": _said(run, answer)}
    return None


def _model_of(answer: Answer, run: RunDir) -> dict[str, Any]:
    """The version that gave an answer, with its lineage as it was recorded; of a plain run or directory as it is now."""
    root = run.path.parent
    try:
        version = find_version(answer.version, root)
        if version is not None:
            return {"version": version.id, "model": version.ref, "weights": version.weights, "lineage": dict(version.lineage)}
        found = find_checkpoint(str(run.record["config"].get("model")), root)
    except (ConfigError, ValueError) as error:
        return {"version": answer.version, "model": None, "lineage": None, "problem": str(error)}
    return {"version": answer.version, "model": found.ref, "lineage": lineage_of(found.place, found.step, root)}


def _said(run: RunDir, answer: Answer) -> list[dict[str, Any]]:
    """What people said of the answer."""
    for one in exchanges(run.path, answer.time - 1, answer.time + 1):
        if one.id == answer.id:
            return [{key: value for key, value in asdict(said).items() if value is not None} for said in one.ratings]
    return []


def feedback_behind(lineage: Mapping[str, Any], root: Path) -> list[dict[str, Any]]:
    """The feedback that went into a model: each run of `collect` whose data it or its ancestors learnt from."""
    found: dict[str, dict[str, Any]] = {}
    for one in ancestors(lineage):
        for data in one.get("data") or ():
            folder = Path(str(data.get("path"))).parent
            manifest = read_json(folder / MANIFEST_NAME) if (folder.parent / "run.yaml").is_file() else None
            if manifest and "watch" in manifest:
                run = folder.parent.name
                found[run] = {"run": run, **{key: manifest[key] for key in ("watch", "since", "until", "counts")}}
    return list(found.values())


def trace_document(name: str, root: Path | None = None) -> dict[str, Any]:
    """Where a document lies, which runs learnt from it, which began with one that did, and which versions these became.

    {places, runs: [{run, job, steps, how}], versions: [{version, run}]}.
    """
    runs = RunDir.all(root) if root else all_runs()
    by_id = {run.id: run for run in runs}
    searched: dict[str, list[Place]] = {}
    how: dict[str, str] = {}
    for run in runs:
        if not run.model_record.is_file():
            continue
        for path in data_paths(run):
            if path not in searched:
                searched[path] = list(_places(path, name))
            if any(one.split == "train" for one in searched[path]):
                how[run.id] = "learnt from it"
    for run in runs:  # the oldest first: whoever begins with another is younger
        if run.id not in how and run.model_record.is_file():
            begun = next((base for _, base, _ in bases_of(run) if isinstance(base, RunDir) and base.id in how), None)
            if begun is not None:
                how[run.id] = f"began with {begun.id}"
    return {
        "document": name,
        "places": [asdict(one) for places in searched.values() for one in places],
        "runs": [_learner(by_id[run], words) for run, words in how.items()],
        "versions": [
            {"version": version.id, "run": version.run, "aliases": [a for a, v in model.aliases().items() if v.id == version.id]}
            for model in registered_models(root)
            for version in model.versions()
            if version.run in how or (version.path and _comes_from(version.lineage, how))
        ],
    }


def _comes_from(lineage: Mapping[str, Any], runs: Mapping[str, str]) -> bool:
    return any(one.get("run") in runs for one in ancestors(lineage))


def _learner(run: RunDir, words: str) -> dict[str, Any]:
    config = run.record.get("config") or {}
    about = {"run": run.id, "job": run.record.get("job"), "how": words}
    return {**about, "steps": run.results().get("step") or config.get("steps"), "seed": config.get("seed")}


def _places(path: str, name: str) -> Iterator[Place]:
    """Where a document of this id lies in a data set, or in a file of records."""
    try:
        if StoragePath(path).exists(MANIFEST_NAME):
            yield from _in_shards(path, name)
        elif path.endswith(".jsonl") and Path(path).is_file() and Path(path).stat().st_size <= _MOST_BYTES:
            yield from _in_lines(path, name)
    except (RopewalkError, OSError):  # it is gone by now, or not a data set
        return


def _in_shards(path: str, name: str) -> Iterator[Place]:
    place = StoragePath(path)
    for shard in read_manifest(place).shards:
        source = pa.memory_map(str(place.local / shard.path)) if place.local else pa.BufferReader(place.read(shard.path))
        with source as stream:
            reader = pa.ipc.open_file(stream)
            row = 0
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                found = pc.index(batch.column("id"), name).as_py()
                if found >= 0:
                    yield Place(data=path, file=shard.path, split=shard.split, row=row + found)
                row += batch.num_rows


def _in_lines(path: str, name: str) -> Iterator[Place]:
    needle = json.dumps(name, ensure_ascii=False)
    with Path(path).open(encoding="utf-8", errors="replace") as lines:
        for row, line in enumerate(lines):
            if needle in line and _id_of(line) == name:
                yield Place(data=path, file=path, split="train", row=row)


def _id_of(line: str) -> Any:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value.get("id") if isinstance(value, dict) else None
