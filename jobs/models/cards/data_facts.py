"""Facts about a data set for the cards, from its manifest and report."""

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
from ropewalk.datapipe.report.report import REPORT
from ropewalk.jobs.models.cards.public import public, public_text

PREPARED = "data.json"  # in a run: path of the data set that it prepared
CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """A data set as it may be published: without paths of the machine and secrets."""

    name: str
    manifest: Manifest
    report: dict[str, Any] = field(default_factory=dict)  # report.json of preprocess, if any
    manifest_bytes: bytes = b""

    @property
    def config(self) -> dict[str, Any]:
        """The keys that determined the content of the data set."""
        config: dict[str, Any] = public(self.manifest.config)
        return {key: value for key, value in config.items() if key not in {"input", "output"}}

    @property
    def languages(self) -> list[str]:
        """The languages kept, if preprocess selected any."""
        language = self.manifest.config.get("language") or {}
        return sorted(language.get("keep") or [])

    @property
    def version(self) -> str:
        """A version derived from the content: equal content has equal versions."""
        return f"1.0.0+{self.manifest.hash.removeprefix('xxh3:')[:12]}"


def read_data_facts(storage: StoragePath) -> DataFacts:
    """Return the facts of the data set in a directory. Raises DataError if there is none."""
    manifest = read_manifest(storage)
    try:
        report = json.loads(storage.read(REPORT))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        report = {}
    name = storage.url.rstrip("/").rpartition("/")[2] or "data"
    return DataFacts(name=name, manifest=manifest, report=public(report), manifest_bytes=storage.read(MANIFEST_NAME))


@dataclass(frozen=True, kw_only=True)
class OtherData:
    """Data of a run that is not a prepared data set: a file of pairs or conversations, or data that no longer exists."""

    name: str
    description: str


def data_facts_of(run: RunDir) -> tuple[list[DataFacts], list[OtherData]]:
    """Return descriptions of a run's training data: of data sets by their manifests, of files by their sizes."""
    config = dict(run.record.get("config") or {})
    prepared = read_json(run.path / PREPARED)
    paths = [_path(entry) for entry in _entries(config.get("data"))]
    if prepared and "path" in prepared:  # conversations prepared by this run or an earlier one
        url = prepared["path"] if "://" in prepared["path"] else os.path.normpath(run.path / prepared["path"])
        try:
            facts = read_data_facts(StoragePath(url))
            names = ", ".join(public_text(path).rpartition("/")[2] for path in paths)
            return [replace(facts, name=names or facts.name)], []
        except (RopewalkError, OSError):
            pass
    data_sets: list[DataFacts] = []
    others: list[OtherData] = []
    for path in paths:
        try:
            data_sets.append(read_data_facts(StoragePath(path)))
        except (RopewalkError, OSError):
            others.append(_other(path))
    return data_sets, others


def _entries(data: Any) -> list[Any]:
    return list(data) if isinstance(data, (list, tuple)) else [data] if data else []


def _path(entry: Any) -> str:
    return str(entry.get("path", "data")) if isinstance(entry, dict) else str(entry)


def _other(path: str) -> OtherData:
    name = public_text(path).rpartition("/")[2] or "data"
    local = StoragePath(path).local
    if local is not None and local.is_file():
        return OtherData(name=name, description=f"a file of {local.stat().st_size:,} bytes, SHA-256 {sha256_of(local)}")
    return OtherData(name=name, description="not a prepared data set, or no longer available")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
