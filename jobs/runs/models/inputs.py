"""What a run reads and makes, by names that are the same wherever the run is mirrored: W&B joins runs to one graph by them."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.names import PREPARED_DATA
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.results.metrics import curves

READS_DATA = ("data", "input")  # keys of a job that name data sets
_READS_MODELS = ("model", "teacher", "start_from")
_STEP = re.compile(r"step-(\d+)$")
_AT_STEP = re.compile(r"(.+)@(\d+)")
ROUTES, BILL = "serving/routes.json", "ml-bom.json"  # of a run that serves, and of a model that was exported
_LOOK_SECONDS = 2.0  # a store that does not answer must not hold up a mirror


class Reference(NamedTuple):
    """A data set, a tokenizer, a checkpoint, a model or scores. Equal `uri`s are one version of the artifact `name`."""

    name: str
    kind: str
    uri: str
    metadata: Mapping[str, Any]
    aliases: tuple[str, ...] = ()


def reads(run: RunDir) -> list[Reference]:
    """What the run's configuration says that it reads."""
    config = run.record.get("config") or {}
    found = [one for key in READS_DATA for path in paths_in(config.get(key)) if (one := data_set(path))]
    if (prepared := _prepared(run)) is not None:
        found.append(prepared)
    served = _served(run)
    wanted = served or [config[key] for key in _READS_MODELS if config.get(key)]
    found += [one for named in wanted for one in _model(run, named)]
    if (known := read_json(run.model_record)) and (used := _tokenizer(known.get("tokenizer"))):
        found.append(used)
    return list({one.uri: one for one in found}.values())


def makes(run: RunDir) -> list[Reference]:
    """What the run has made so far: its data set, its checkpoints, its scores."""
    config = run.record.get("config") or {}
    found = []
    if isinstance(config.get("output"), str) and (made := data_set(config["output"])):
        found += [made, *([used] if (used := _tokenizer(made.metadata.get("tokenizer"))) else [])]
    found += _checkpoints(run)
    results = run.results()
    if isinstance(results.get("scores"), dict):
        found.append(Reference(f"{run.id}-scores", "evaluation", f"ropewalk://{run.id}/scores", results["scores"], ("latest",)))
    return found


def checkpoints_to_upload(run: RunDir, *, only_best: bool) -> list[tuple[int, list[str]]]:
    """Complete checkpoints with their aliases: all, or the best by validation loss (the newest where none was validated)."""
    found = [(int(one.metadata["step"]), list(one.aliases)) for one in _checkpoints(run)]
    if not only_best:
        return found
    best = [one for one in found if "best" in one[1]] or found[-1:]
    return best


def _prepared(run: RunDir) -> Reference | None:
    """The data set that was made of the run's data before it began to learn: its place is in the run's directory."""
    record = read_json(run.path / PREPARED_DATA)
    if not isinstance(record, dict) or not isinstance(record.get("path"), str):
        return None
    path = record["path"]
    return data_set(path if "://" in path else os.path.normpath(run.path / path))


def data_set(path: str) -> Reference | None:
    """A data set by the hash of its manifest, so that a laptop and a pod mean the same; None if there is no data set."""
    with suppress(OSError, RopewalkError, ValueError):
        raw = StoragePath(path, _LOOK_SECONDS).read("manifest.json")
        manifest, digest = json.loads(raw), hashlib.sha256(raw).hexdigest()
        totals = {key: manifest[key] for key in ("documents", "tokens", "totals") if key in manifest}
        tokenizer = {"tokenizer": manifest["tokenizer"]} if isinstance(manifest.get("tokenizer"), dict) else {}
        metadata = {"path": path, "sha256": digest, **totals, **tokenizer}
        return Reference(f"data-{digest[:12]}", "dataset", f"ropewalk://data/{digest}", metadata, ("latest",))
    return None


def _tokenizer(record: Any) -> Reference | None:
    """A tokenizer, by the hash of its files, out of a data set's manifest or a run's `model.json`."""
    if not isinstance(record, Mapping) or not record.get("hash"):
        return None
    word = re.sub(r"[^\w]+", "-", str(record["hash"]))
    return Reference(f"tokenizer-{word[-12:]}", "tokenizer", f"ropewalk://tokenizer/{word}", dict(record), ("latest",))


def _served(run: RunDir) -> list[str]:
    """The models that a serving run has loaded, by what its controller wrote down: an alias means another one tomorrow."""
    routes = read_json(run.path / ROUTES)
    versions = (routes.get("versions") or {}) if isinstance(routes, dict) else {}
    return [one["model"] for one in versions.values() if one.get("model")]


def checkpoint(run_id: str, step: int, **metadata: Any) -> Reference:
    """A checkpoint of a run."""
    uri = f"ropewalk://{run_id}/checkpoints/step-{step:08d}"
    return Reference(f"{run_id}-checkpoint", "model", uri, {"run": run_id, "step": step, **metadata}, (f"step-{step}",))


def _checkpoints(run: RunDir) -> Iterator[Reference]:
    """The complete checkpoints in the run directory; the newest and the best are called so."""
    steps = _steps(run)
    if not steps:
        return
    validated, losses = curves(run).get("validation/loss", ([], []))
    known = {step: loss for step, loss in zip(validated, losses, strict=True) if step in steps}
    best = min(known, key=lambda step: known[step]) if known else None
    for step in steps:
        loss = {"validation/loss": known[step]} if step in known else {}
        found = checkpoint(run.id, step, **loss)
        extra = [*(["latest"] if step == steps[-1] else []), *(["best"] if step == best else [])]
        yield found._replace(aliases=(*found.aliases, *extra))


def _steps(run: RunDir) -> list[int]:
    found = [(_STEP.search(path.parent.name), path) for path in run.checkpoints.glob("step-*/manifest.json")]
    return sorted(int(match[1]) for match, path in found if match and path.stat().st_size)


def _model(run: RunDir, value: Any) -> Iterator[Reference]:
    """A model as a job names it: a run, a directory, or a mapping with `run` or `path`."""
    named = value if isinstance(value, Mapping) else {"run": value}
    ref, step = named.get("run") or named.get("path"), named.get("step")
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
    """The checkpoint that a directory of `ropewalk export` was made of, by its bill of materials."""
    bill = read_json(directory / BILL)
    model = ((bill.get("metadata") or {}).get("component") or {}) if isinstance(bill, dict) else {}
    step = _STEP.fullmatch(str(model.get("version")))
    return checkpoint(str(model["name"]), int(step[1])) if step and model.get("name") else None


def paths_in(value: Any) -> Iterator[str]:
    """The paths in a key that may be one, a list of them, or a list of {path, weight}."""
    for one in value if isinstance(value, list) else [value]:
        path = one.get("path") if isinstance(one, Mapping) else one
        if isinstance(path, str):
            yield path
