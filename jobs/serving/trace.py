"""Provenance: the model, code, data and feedback behind an answer, and the models that were trained on a document."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.shard_cache import read_shards
from ropewalk.datapipe.manifest import MANIFEST_NAME, read_manifest
from ropewalk.jobs.models.registry.lineage import ancestors, bases_of, data_paths, lineage_of
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.runs.models.model_versions import find_version, registered_models
from ropewalk.jobs.runs.show.status import all_runs
from ropewalk.jobs.serving.feedback.read import Answer, exchanges, find_answer
from ropewalk.jobs.serving.feedback.records import FOLDER

_MAX_BYTES = 256 << 20  # larger files of records are not searched
_REPLAYED = re.compile("^(replay-)+")  # of ids in data that were collected again


@dataclass(frozen=True, kw_only=True)
class DocumentLocation:
    """Location of a document in the training data of a run."""

    data: str
    file: str  # the shard below the data set, or the file itself
    split: str
    row: int


def trace_answer(number: str, root: Path | None = None) -> dict[str, Any] | None:
    """Return {answer, serve, version, model, weights, lineage, feedback} of an answer, or None if no serving run has it."""
    for run in reversed(RunDir.all(root) if root else all_runs()):
        answer = find_answer(run, number) if (run.path / FOLDER).is_dir() else None
        if answer is not None:
            return {"answer": answer._asdict(), "serve": run.id, **_model_of(answer, run), "feedback": _ratings_of(run, answer)}
    return None


def _model_of(answer: Answer, run: RunDir) -> dict[str, Any]:
    """Return the version that gave an answer, with its recorded lineage; for a plain run or directory its current lineage."""
    root = run.path.parent
    try:
        version = find_version(answer.version, root)
        if version is not None:
            return {"version": version.id, "model": version.ref, "weights": version.weights, "lineage": dict(version.lineage)}
        checkpoint = find_checkpoint(str(run.record["config"].get("model")), root)
    except (ConfigError, ValueError) as error:
        return {"version": answer.version, "model": None, "lineage": None, "problem": str(error)}
    return {"version": answer.version, "model": checkpoint.ref, "lineage": lineage_of(checkpoint.source, checkpoint.step, root)}


def _ratings_of(run: RunDir, answer: Answer) -> list[dict[str, Any]]:
    """Return the ratings of an answer."""
    for exchange in exchanges(run.path, answer.time - 1, answer.time + 1):
        if exchange.id == answer.id:
            return [{key: value for key, value in asdict(rating).items() if value is not None} for rating in exchange.ratings]
    return []


def feedback_behind(lineage: Mapping[str, Any], root: Path) -> list[dict[str, Any]]:
    """Return the `collect` runs whose data a model or its ancestors were trained on."""
    by_run: dict[str, dict[str, Any]] = {}
    for ancestor in ancestors(lineage):
        for data in ancestor.get("data") or ():
            folder = Path(str(data.get("path"))).parent
            manifest = read_json(folder / MANIFEST_NAME) if (folder.parent / "run.yaml").is_file() else None
            if manifest and "watch" in manifest:
                run = folder.parent.name
                by_run[run] = {"run": run, **{key: manifest[key] for key in ("watch", "since", "until", "counts")}}
    return list(by_run.values())


def trace_documents(names: Set[str], root: Path | None = None, files: Iterable[str] = ()) -> dict[str, Any]:
    """Return the locations of documents, the runs trained on them directly or through a base model, and the resulting versions.

    {places, runs: [{run, job, steps, how}], versions: [{version, run, aliases}]}. `files` are searched in addition to the data of
    all runs. Repetitions of earlier data (ids that start with `replay-`) are found, too.
    """
    runs = RunDir.all(root) if root else all_runs()
    by_id = {run.id: run for run in runs}
    searched = {path: list(_places(path, names)) for path in files}
    how: dict[str, str] = {}
    for run in runs:
        if not run.model_record.is_file():
            continue
        for path in data_paths(run):
            if path not in searched:
                searched[path] = list(_places(path, names))
            if any(location.split == "train" for location in searched[path]):
                how[run.id] = "was trained on it"
    for run in runs:  # oldest first: a run is younger than its base
        if run.id not in how and run.model_record.is_file():
            base_run = next((base for _, base, _ in bases_of(run) if isinstance(base, RunDir) and base.id in how), None)
            if base_run is not None:
                how[run.id] = f"started from {base_run.id}"
    return {
        "places": [asdict(location) for places in searched.values() for location in places],
        "runs": [_learner(by_id[run], relation) for run, relation in how.items()],
        "versions": [
            {"version": version.id, "run": version.run, "aliases": [a for a, v in model.aliases().items() if v.id == version.id]}
            for model in registered_models(root)
            for version in model.versions()
            if version.run in how or (version.path and _comes_from(version.lineage, how))
        ],
    }


def _comes_from(lineage: Mapping[str, Any], runs: Mapping[str, str]) -> bool:
    return any(ancestor.get("run") in runs for ancestor in ancestors(lineage))


def _learner(run: RunDir, relation: str) -> dict[str, Any]:
    config = run.record.get("config") or {}
    about = {"run": run.id, "job": run.record.get("job"), "how": relation}
    return {**about, "steps": run.results().get("step") or config.get("steps"), "seed": config.get("seed")}


def _places(path: str, names: Set[str]) -> Iterator[DocumentLocation]:
    """Yield the locations of document ids in a data set or a file of records."""
    try:
        if StoragePath(path).exists(MANIFEST_NAME):
            yield from _in_shards(path, names)
        elif path.endswith(".jsonl") and Path(path).is_file() and Path(path).stat().st_size <= _MAX_BYTES:
            yield from _in_lines(path, names)
    except (RopewalkError, OSError):  # deleted, or not a data set
        return


def _in_shards(path: str, names: Set[str]) -> Iterator[DocumentLocation]:
    data_set, wanted = StoragePath(path), pa.array(sorted(names), pa.string())
    for shard in read_shards(data_set, read_manifest(data_set)):
        source = pa.memory_map(str(data_set.local / shard.path)) if data_set.local else pa.BufferReader(data_set.read(shard.path))
        with source as stream:
            reader = pa.ipc.open_file(stream)
            row = 0
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                ids = pc.replace_substring_regex(batch.column("id").cast(pa.string()), _REPLAYED.pattern, "")
                for index in pc.indices_nonzero(pc.is_in(ids, value_set=wanted)).to_pylist():
                    yield DocumentLocation(data=path, file=shard.path, split=shard.split, row=row + index)
                row += batch.num_rows


def _in_lines(path: str, names: Set[str]) -> Iterator[DocumentLocation]:
    with Path(path).open("rb") as lines:
        for row, line in enumerate(lines):
            if id_of(line) in names:
                yield DocumentLocation(data=path, file=path, split="train", row=row)


def id_of(line: bytes) -> str | None:
    """Return the id of a record, without the prefix of repetitions; None for a line without one."""
    try:
        number = orjson.loads(line)["id"]
    except (ValueError, TypeError, KeyError):
        return None
    return _REPLAYED.sub("", number) if isinstance(number, str) else None
