"""Facts about a model for the cards, from its run's directory and the runs that scored it."""

import json
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.text import counted
from ropewalk.jobs.models.cards.data_facts import DataFacts, OtherData, data_facts_of, sha256_of
from ropewalk.jobs.models.cards.public import public, public_text
from ropewalk.jobs.runs.models.find_model import names_model
from ropewalk.jobs.runs.submit.provenance import versions
from ropewalk.jobs.training.loop.architecture.model_record import find_source_run, read_record

MOST_ANCESTORS = 20
_SAFETENSORS_SIZE = 8  # bytes of the header's length
SCORED = ("evaluate", "audit")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured value of a model, with its run and uncertainty."""

    job: str
    run: str
    name: str
    value: float
    standard_error: float | None
    n: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval by the normal approximation."""
        if self.standard_error is None:
            return None
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as it may be published: without paths of the machine and secrets."""

    name: str  # of its run
    job: str
    created: str  # day of the submission
    step: int | None
    architecture: str
    config: dict[str, Any]  # of the run
    head: str  # causal_lm, or reward
    lineage: list[str]  # ancestors of the model, the nearest first
    license: str | None  # of the nearest ancestor that states one
    num_parameters: int
    files: dict[str, str]  # SHA-256 of each file of weights
    versions: dict[str, str]
    commit: str | None  # with the number of uncommitted files
    results: dict[str, Any]
    measured: list[Measured]
    gates: list[dict[str, Any]]
    data: list[DataFacts]
    other_data: list[OtherData]


def read_model_facts(run: RunDir, directory: Path, step: int | None) -> ModelFacts:
    """Return the facts of a run's model with weights in `directory`."""
    record = run.record
    model_record = read_record(run)
    data, other_data = data_facts_of(run)
    lineage = lineage_of(run)
    files = sorted(directory.glob("*.safetensors"))
    measured, gates = _scores(run)
    program_versions = {name: str(text) for name, text in (record.get("versions") or versions()).items() if text}
    config = json.loads((directory / "config.json").read_text()) if (directory / "config.json").is_file() else {}
    fingerprint = model_record.fingerprint if model_record is not None else {}
    return ModelFacts(
        name=run.id,
        job=str(record.get("job", "training")),
        created=time.strftime("%Y-%m-%d", time.gmtime(float(record.get("created") or run.path.stat().st_mtime))),
        step=step,
        architecture=str((config.get("architectures") or [config.get("model_type") or fingerprint.get("model_type") or ""])[0]),
        config=public(dict(record.get("config") or {})),
        head=model_record.head if model_record is not None else "causal_lm",
        lineage=[name for name, _ in lineage],
        license=next((text for _, text in lineage if text), None),
        num_parameters=sum(_parameters(path) for path in files),
        files={path.name: sha256_of(path) for path in files},
        versions=program_versions,
        commit=_commit_of(record.get("code") or {}),
        results={k: v for k, v in run.results().items() if isinstance(v, (int, float)) and not isinstance(v, bool)},
        measured=measured,
        gates=gates,
        data=data,
        other_data=other_data,
    )


def _commit_of(code: Mapping[str, Any]) -> str | None:
    """Return the commit of the submission with the number of uncommitted files, or None."""
    commit, uncommitted = code.get("commit"), int(code.get("uncommitted") or 0)
    return f"{commit} with {counted(uncommitted, 'uncommitted file')}" if commit and uncommitted else commit


def lineage_of(run: RunDir) -> list[tuple[str, str | None]]:
    """Return (name, licence) of each ancestor of the run's model: runs, and at the end a directory with its own card."""
    ancestors: list[tuple[str, str | None]] = []
    while len(ancestors) < MOST_ANCESTORS:
        record = read_record(run)
        weights = record.weights if record is not None else None
        if weights is None:
            break
        if weights.path is not None:
            fetched = {item["path"]: str(item["name"]).removeprefix("hf://") for item in run.record.get("fetched") or ()}
            ancestors.append((fetched.get(weights.path) or str(public(weights.path)), _license(Path(weights.path))))
            break
        ancestors.append((str(weights.run), None))
        try:
            run = find_source_run(run, str(weights.run), "model.run")
        except RopewalkError:  # removed, or on another machine
            break
    return [(public_text(name).rpartition("/")[2] if name.startswith("/") else name, text) for name, text in ancestors]


def _license(directory: Path) -> str | None:
    """Return the licence in the card of a model directory."""
    try:
        parts = (directory / "README.md").read_text().split("---", 2)
        license_name = (yaml.safe_load(parts[1]) or {}).get("license") if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return None
    return str(license_name) if license_name and license_name != "other" else None


def _parameters(path: Path) -> int:
    """Return the number of parameters in a safetensors file, from its header alone."""
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(_SAFETENSORS_SIZE))
        header = json.loads(stream.read(size))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _scores(run: RunDir) -> tuple[list[Measured], list[dict[str, Any]]]:
    """Return figures and gates of every finished run beside this one that scored its model, the oldest first."""
    measured, gates = [], []
    mine = {run.id, str(run.path), *(str(event["directory"]) for event in run.read_events() if event["event"] == "exported")}
    for other in RunDir.all(run.path.parent):
        try:
            job, scored = str(other.record.get("job")), str((other.record.get("config") or {}).get("model") or "")
            if job not in SCORED or not (scored in mine or names_model(scored, run)):
                continue
            results = other.results()
        except (RopewalkError, OSError, ValueError):  # a run that is being removed, or a foreign folder
            continue
        measured += [Measured(job=job, run=other.id, **figure) for figure in _figures(results)]
        if isinstance(results.get("gate"), dict):
            gates.append({"job": job, "run": other.id, **results["gate"]})
    return measured, gates


def _figures(results: dict[str, Any]) -> list[dict[str, Any]]:
    figures = []
    for name in ("loss", "bits_per_byte", "perplexity"):
        if isinstance(results.get(name), (int, float)):
            error = results.get("standard_error") if name == "loss" else None
            figures.append({"name": name, "value": results[name], "standard_error": error, "n": results.get("n")})
    return figures + _nested(results.get("scores") or {}, "")


def _nested(scores: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Return every score in nested dictionaries, named by its path."""
    scores_by_path = []
    for name, value in scores.items():
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("value"), (int, float)):
            keys = ("value", "standard_error", "n")
            scores_by_path.append({"name": f"{prefix}{name}", **{key: value.get(key) for key in keys}})
        elif "value" not in value:
            scores_by_path += _nested(value, f"{prefix}{name}/")
    return scores_by_path
