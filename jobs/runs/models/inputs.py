"""Inputs and outputs of a run under globally unique names, by which W&B connects runs to one lineage graph."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.names import PREPARED_DATA
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import read_manifest
from ropewalk.jobs.results.metrics import curves

READS_DATA = ("data", "input")  # keys of a job that name data sets
_READS_MODELS = ("model", "teacher", "start_from")
_STEP = re.compile(r"step-(\d+)$")
_AT_STEP = re.compile(r"(.+)@(\d+)")
ROUTES, BILL = "serving/routes.json", "ml-bom.json"  # of a serving run; of an exported model
_PATIENCE_SECONDS = 2.0  # a store that does not answer must not block a mirror


class Reference(NamedTuple):
    """Reference to a data set, tokenizer, checkpoint, model or scores. Equal `uri`s are the same version of artifact `name`."""

    name: str
    kind: str
    uri: str
    metadata: Mapping[str, Any]
    aliases: tuple[str, ...] = ()


def reads(run: RunDir) -> list[Reference]:
    """Return the inputs of a run according to its configuration."""
    config = run.record.get("config") or {}
    references = [data for key in READS_DATA for path in paths_in(config.get(key)) if (data := data_set(path))]
    if (prepared := _prepared(run)) is not None:
        references.append(prepared)
    models = _served(run) or [config[key] for key in _READS_MODELS if config.get(key)]
    references += [reference for model in models for reference in _model(run, model)]
    if (model_record := read_json(run.model_record)) and (tokenizer := _tokenizer(model_record.get("tokenizer"))):
        references.append(tokenizer)
    return list({reference.uri: reference for reference in references}.values())


def reads_captured(run: RunDir) -> bool:
    """Return True if the run's data, or the inputs of its data sets, were collected from what users wrote to an endpoint."""
    config = run.record.get("config") or {}
    paths = [file for key in READS_DATA for path in paths_in(config.get(key)) for file in glob(path) or [path]]
    for path in list(paths):
        with suppress(OSError, RopewalkError, ValueError):  # not a data set
            paths += [record.path for record in read_manifest(StoragePath(path, _PATIENCE_SECONDS)).inputs]
    owners = {folder for path in paths for folder in Path(path).parents if (folder / "run.yaml").is_file()}
    return any(RunDir(folder).record.get("job") == "collect" for folder in owners)


def makes(run: RunDir) -> list[Reference]:
    """Return the current outputs of a run: data set, checkpoints, scores."""
    config = run.record.get("config") or {}
    references = []
    if isinstance(config.get("output"), str) and (output := data_set(config["output"])):
        references += [output, *([tokenizer] if (tokenizer := _tokenizer(output.metadata.get("tokenizer"))) else [])]
    references += _checkpoints(run)
    results = run.results()
    if isinstance(results.get("scores"), dict):
        uri = f"ropewalk://{run.id}/scores"
        references.append(Reference(f"{run.id}-scores", "evaluation", uri, results["scores"], ("latest",)))
    return references


def checkpoints_to_upload(run: RunDir, *, only_best: bool) -> list[tuple[int, list[str]]]:
    """Return (step, aliases) of complete checkpoints: all, or the best by validation loss (without validation, the newest)."""
    checkpoints = [(int(reference.metadata["step"]), list(reference.aliases)) for reference in _checkpoints(run)]
    if not only_best:
        return checkpoints
    return [(step, aliases) for step, aliases in checkpoints if "best" in aliases] or checkpoints[-1:]


def _prepared(run: RunDir) -> Reference | None:
    """Return the data set that was prepared from the run's data; the run directory contains its path."""
    record = read_json(run.path / PREPARED_DATA)
    if not isinstance(record, dict) or not isinstance(record.get("path"), str):
        return None
    path = record["path"]
    return data_set(path if "://" in path else os.path.normpath(run.path / path))


def data_set(path: str) -> Reference | None:
    """Return a data set identified by the hash of its manifest, equal on all machines; None if there is no data set."""
    with suppress(OSError, RopewalkError, ValueError):
        raw = StoragePath(path, _PATIENCE_SECONDS).read("manifest.json")
        manifest, digest = json.loads(raw), hashlib.sha256(raw).hexdigest()
        totals = {key: manifest[key] for key in ("documents", "tokens", "totals") if key in manifest}
        tokenizer = {"tokenizer": manifest["tokenizer"]} if isinstance(manifest.get("tokenizer"), dict) else {}
        metadata = {"path": path, "sha256": digest, **totals, **tokenizer}
        return Reference(f"data-{digest[:12]}", "dataset", f"ropewalk://data/{digest}", metadata, ("latest",))
    return None


def _tokenizer(record: Any) -> Reference | None:
    """Return a tokenizer identified by its hash in a data set's manifest or a run's `model.json`, or None."""
    if not isinstance(record, Mapping) or not record.get("hash"):
        return None
    digest = re.sub(r"[^\w]+", "-", str(record["hash"]))
    return Reference(f"tokenizer-{digest[-12:]}", "tokenizer", f"ropewalk://tokenizer/{digest}", dict(record), ("latest",))


def _served(run: RunDir) -> list[str]:
    """Return the models that a serving run has loaded according to its controller, since aliases change over time."""
    routes = read_json(run.path / ROUTES)
    versions = (routes.get("versions") or {}) if isinstance(routes, dict) else {}
    return [version["model"] for version in versions.values() if version.get("model")]


def checkpoint(run_id: str, step: int, **metadata: Any) -> Reference:
    """Return a reference to a checkpoint of a run."""
    uri = f"ropewalk://{run_id}/checkpoints/step-{step:08d}"
    return Reference(f"{run_id}-checkpoint", "model", uri, {"run": run_id, "step": step, **metadata}, (f"step-{step}",))


def _checkpoints(run: RunDir) -> Iterator[Reference]:
    """Yield the complete checkpoints in the run directory, with the aliases `latest` and `best`."""
    steps = _steps(run)
    if not steps:
        return
    validated, losses = curves(run).get("validation/loss", ([], []))
    loss_at = {step: loss for step, loss in zip(validated, losses, strict=True) if step in steps}
    best = min(loss_at, key=lambda step: loss_at[step]) if loss_at else None
    for step in steps:
        loss = {"validation/loss": loss_at[step]} if step in loss_at else {}
        reference = checkpoint(run.id, step, **loss)
        extra = [*(["latest"] if step == steps[-1] else []), *(["best"] if step == best else [])]
        yield reference._replace(aliases=(*reference.aliases, *extra))


def _steps(run: RunDir) -> list[int]:
    manifests = [(_STEP.search(path.parent.name), path) for path in run.checkpoints.glob("step-*/manifest.json")]
    return sorted(int(match[1]) for match, path in manifests if match and path.stat().st_size)


def _model(run: RunDir, value: Any) -> Iterator[Reference]:
    """Yield the reference of a model in a configuration: a run, a directory, or a mapping with `run` or `path`."""
    keys = value if isinstance(value, Mapping) else {"run": value}
    ref, step = keys.get("run") or keys.get("path"), keys.get("step")
    if not isinstance(ref, str):
        return
    if at_step := _AT_STEP.fullmatch(ref):
        ref, step = at_step[1], int(at_step[2])
    beside = RunDir(run.path.parent / Path(ref).name)
    if (beside.path / "run.yaml").is_file() and ref in {beside.id, str(beside.path)}:
        step = step or run.results().get("step") or max(_steps(beside), default=None)
        if step is not None:
            yield checkpoint(beside.id, int(step))
    elif (exported := _exported(Path(ref))) is not None:
        yield exported
    else:
        name = re.sub(r"[^\w.-]+", "-", Path(ref).name) or "model"
        yield Reference(f"model-{name}", "model", f"ropewalk://model/{hashlib.sha256(ref.encode()).hexdigest()}", {"path": ref})


def _exported(directory: Path) -> Reference | None:
    """Return the checkpoint from which a directory was exported, according to its bill of materials, or None."""
    bill = read_json(directory / BILL)
    model = ((bill.get("metadata") or {}).get("component") or {}) if isinstance(bill, dict) else {}
    step = _STEP.fullmatch(str(model.get("version")))
    return checkpoint(str(model["name"]), int(step[1])) if step and model.get("name") else None


def paths_in(value: Any) -> Iterator[str]:
    """Yield the paths in a configuration value: a path, a list of paths, or a list of {path, weight}."""
    for item in value if isinstance(value, list) else [value]:
        path = item.get("path") if isinstance(item, Mapping) else item
        if isinstance(path, str):
            yield path
