"""What the cards say of a data set, out of its manifest and its report."""

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import MANIFEST_NAME, Manifest, read_manifest
from ropewalk.jobs.models.cards.public import public, public_text

REPORT = "report/report.json"
PREPARED = "data.json"  # in a run: where the data set lies that it prepared
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """A data set as others may know it: no path of the machine, no secret."""

    name: str
    manifest: Manifest
    report: dict[str, Any] = field(default_factory=dict)  # of preprocess, where it wrote one
    manifest_bytes: bytes = b""

    @property
    def config(self) -> dict[str, Any]:
        """The keys that decided what is in the data set."""
        found: dict[str, Any] = public(self.manifest.config)
        return {key: value for key, value in found.items() if key not in {"input", "output"}}

    @property
    def languages(self) -> list[str]:
        """The languages that were kept, where preprocess chose any."""
        language = self.manifest.config.get("language") or {}
        return sorted(language.get("keep") or [])

    @property
    def version(self) -> str:
        """A version made of the content: equal content has equal versions."""
        return f"1.0.0+{self.manifest.hash.removeprefix('xxh3:')[:12]}"


def read_data_facts(place: StoragePath) -> DataFacts:
    """The facts of the data set at `place`. Raises DataError where there is none."""
    manifest = read_manifest(place)
    try:
        report = json.loads(place.read(REPORT))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        report = {}
    name = place.url.rstrip("/").rpartition("/")[2] or "data"
    return DataFacts(name=name, manifest=manifest, report=public(report), manifest_bytes=place.read(MANIFEST_NAME))


@dataclass(frozen=True, kw_only=True)
class OtherData:
    """Data of a run that is no prepared data set: a file of pairs or conversations, or what is not to be read any more."""

    name: str
    told: str  # what can be said of it


def data_facts_of(run: RunDir) -> tuple[list[DataFacts], list[OtherData]]:
    """What can be said of the data that a run learnt from: of data sets by their manifests, of files by their sizes."""
    config = dict(run.record.get("config") or {})
    known = read_json(run.path / PREPARED)
    paths = [_path(entry) for entry in _entries(config.get("data"))]
    if known and "path" in known:  # conversations that the run prepared, or found prepared
        place = known["path"] if "://" in known["path"] else os.path.normpath(run.path / known["path"])
        try:
            facts = read_data_facts(StoragePath(place))
            names = ", ".join(public_text(path).rpartition("/")[2] for path in paths)
            return [replace(facts, name=names or facts.name)], []
        except (RopewalkError, OSError):
            pass
    found: list[DataFacts] = []
    others: list[OtherData] = []
    for path in paths:
        try:
            found.append(read_data_facts(StoragePath(path)))
        except (RopewalkError, OSError):
            others.append(_other(path))
    return found, others


def _entries(data: Any) -> list[Any]:
    return list(data) if isinstance(data, (list, tuple)) else [data] if data else []


def _path(entry: Any) -> str:
    return str(entry.get("path", "data")) if isinstance(entry, dict) else str(entry)


def _other(path: str) -> OtherData:
    name = public_text(path).rpartition("/")[2] or "data"
    local = StoragePath(path).local
    if local is not None and local.is_file():
        return OtherData(name=name, told=f"a file of {local.stat().st_size:,} bytes, SHA-256 {sha256_of(local)}")
    return OtherData(name=name, told="not a prepared data set, or not there any more")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
