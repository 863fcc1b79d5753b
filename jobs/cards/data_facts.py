"""What the cards say of a data set, out of its manifest and its report."""

import json
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import RopewalkError
from cluster.storage import StoragePath
from datapipe.manifest import MANIFEST_NAME, Manifest, read_manifest
from jobs.cards.public import public

REPORT = "report/report.json"


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


def data_facts_of(config: dict[str, Any]) -> tuple[list[DataFacts], list[dict[str, Any]]]:
    """The data sets that a run's configuration names under `data`, and what can be said of those that are not here any more."""
    data = config.get("data")
    entries = [{"path": data}] if isinstance(data, str) else [one for one in data or [] if isinstance(one, dict)]
    found, missing = [], []
    for entry in entries:
        try:
            found.append(read_data_facts(StoragePath(str(entry["path"]))))
        except (RopewalkError, OSError, KeyError):
            missing.append({"name": public(str(entry.get("path", "data"))), "weight": entry.get("weight", 1.0)})
    return found, missing
