"""What the cards say of a model, out of its run's directory and the runs that scored it."""

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
from ropewalk.jobs.training.loop.model_record import find_source_run, read_record

MOST_ANCESTORS = 20
_SAFETENSORS_SIZE = 8  # bytes of the header's length
SCORED = ("evaluate", "audit")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of a model: which run measured what, and how sure it is."""

    job: str
    run: str
    name: str
    value: float
    standard_error: float | None
    n: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """About 95% of its distribution, by the normal approximation."""
        if self.standard_error is None:
            return None
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as others may know it: no path of the machine, no secret."""

    name: str  # of its run
    job: str
    created: str  # the day on which its run was submitted
    step: int | None
    architecture: str
    config: dict[str, Any]  # of the run
    head: str  # causal_lm, or reward: a score for a whole text
    lineage: list[str]  # the models that training began with, the nearest first
    license: str | None  # of the nearest of those that states one
    num_parameters: int
    files: dict[str, str]  # each file of weights → its SHA-256
    versions: dict[str, str]
    commit: str | None  # and how many files differed from it
    results: dict[str, Any]
    measured: list[Measured]
    gates: list[dict[str, Any]]
    data: list[DataFacts]
    other_data: list[OtherData]


def read_model_facts(run: RunDir, directory: Path, step: int | None) -> ModelFacts:
    """The facts of a run's model, whose weights lie in `directory`."""
    record = run.record
    model_record = read_record(run)
    data, other_data = data_facts_of(run)
    lineage = lineage_of(run)
    files = sorted(directory.glob("*.safetensors"))
    measured, gates = _scores(run)
    stated = {name: str(text) for name, text in (record.get("versions") or versions()).items() if text}
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
        versions=stated,
        commit=_commit_of(record.get("code") or {}),
        results={k: v for k, v in run.results().items() if isinstance(v, (int, float)) and not isinstance(v, bool)},
        measured=measured,
        gates=gates,
        data=data,
        other_data=other_data,
    )


def _commit_of(code: Mapping[str, Any]) -> str | None:
    """The commit that a run was submitted from, with the files that were not in it; None where there is none."""
    commit, uncommitted = code.get("commit"), int(code.get("uncommitted") or 0)
    return f"{commit} with {counted(uncommitted, 'uncommitted file')}" if commit and uncommitted else commit


def lineage_of(run: RunDir) -> list[tuple[str, str | None]]:
    """(name, licence) of each model that the run's began with: runs, and at the end a directory with its own card."""
    found: list[tuple[str, str | None]] = []
    while len(found) < MOST_ANCESTORS:
        record = read_record(run)
        weights = record.weights if record is not None else None
        if weights is None:
            break
        if weights.path is not None:
            found.append((str(public(weights.path)), _license(Path(weights.path))))
            break
        found.append((str(weights.run), None))
        try:
            run = find_source_run(run, str(weights.run), "model.run")
        except RopewalkError:  # it is gone, or lies elsewhere
            break
    return [(public_text(name).rpartition("/")[2] if name.startswith("/") else name, text) for name, text in found]


def _license(directory: Path) -> str | None:
    """What the card of a model's directory says of its licence."""
    try:
        parts = (directory / "README.md").read_text().split("---", 2)
        stated = (yaml.safe_load(parts[1]) or {}).get("license") if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return None
    return str(stated) if stated and stated != "other" else None


def _parameters(path: Path) -> int:
    """The numbers in a safetensors file, by its header alone."""
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(_SAFETENSORS_SIZE))
        header = json.loads(stream.read(size))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _scores(run: RunDir) -> tuple[list[Measured], list[dict[str, Any]]]:
    """The figures and gates of every finished run beside this one that scored its model, the oldest first."""
    measured, gates = [], []
    mine = {run.id, str(run.path), *(str(event["directory"]) for event in run.read_events() if event["event"] == "exported")}
    for other in RunDir.all(run.path.parent):
        try:
            job, scored = str(other.record.get("job")), str((other.record.get("config") or {}).get("model") or "")
            if job not in SCORED or not (scored in mine or names_model(scored, run)):
                continue
            results = other.results()
        except (RopewalkError, OSError, ValueError):  # a run that is being removed, or another program's folder
            continue
        measured += [Measured(job=job, run=other.id, **figure) for figure in _figures(results)]
        if isinstance(results.get("gate"), dict):
            gates.append({"job": job, "run": other.id, **results["gate"]})
    return measured, gates


def _figures(results: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name in ("loss", "bits_per_byte", "perplexity"):
        if isinstance(results.get(name), (int, float)):
            error = results.get("standard_error") if name == "loss" else None
            found.append({"name": name, "value": results[name], "standard_error": error, "n": results.get("n")})
    return found + _nested(results.get("scores") or {}, "")


def _nested(scores: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Every score in nested dictionaries, named by its way down."""
    found = []
    for name, value in scores.items():
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("value"), (int, float)):
            keys = ("value", "standard_error", "n")
            found.append({"name": f"{prefix}{name}", **{key: value.get(key) for key in keys}})
        elif "value" not in value:
            found += _nested(value, f"{prefix}{name}/")
    return found
