"""Build report.json from the manifest and the facts that tasks collected; it is deterministic."""

import json
from typing import Any

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest
from ropewalk.datapipe.report.samples import Facts

REPORT = "report/report.json"


def write_report(output: StoragePath, manifest: Manifest, shards: Facts, dropped: Facts, fairness: dict[str, Any]) -> None:
    """Write report.json."""
    report = make_report(manifest, shards, dropped, fairness)
    output.write(REPORT, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def make_report(manifest: Manifest, shards: Facts, dropped: Facts, fairness: dict[str, Any]) -> dict[str, Any]:
    """Return the report as plain values."""
    totals, config = manifest.totals, manifest.config
    by = (config.get("balance") or {}).get("by", "source")
    counts: dict[str, dict[str, int]] = {}
    for name, count in manifest.counts.items():
        stage, _, key = name.partition(".")
        counts.setdefault(stage, {})[key] = count
    sources = {
        name: {
            "documents": row[0],
            "tokens": row[1],
            "bytes": row[2],
            "share": round(row[1] / max(totals.tokens, 1), 6),
            "dropped": dropped["sources"].get(name, [0])[0],
            **({"epochs": manifest.mixture[name]["epochs"]} if by == "source" and name in manifest.mixture else {}),
        }
        for name, row in shards["sources"].items()
    }
    for name, row in dropped["sources"].items():
        sources.setdefault(name, {"documents": 0, "tokens": 0, "bytes": 0, "share": 0.0, "dropped": row[0]})
    return {
        "documents": {"kept": totals.documents, "dropped": manifest.rejected.total, "renamed": manifest.renamed_ids},
        "tokens": totals.tokens,
        "bytes": totals.bytes,
        "splits": {name: getattr(totals, name).model_dump() for name in ("train", "validation")},
        "reasons": manifest.rejected.reasons,
        "stages": _stages(manifest.rejected.reasons),
        "sources": dict(sorted(sources.items())),
        "languages": counts.pop("language", {}),
        "balance": {"by": by, "shares": manifest.mixture} if manifest.mixture else None,
        "pii": counts.pop("pii", {}),
        "changed": counts,
        "lengths": {f"{1 << k}": count for k, count in enumerate(shards["lengths"]) if count},
        "near_duplicates": manifest.near_duplicates.model_dump() if manifest.near_duplicates else None,
        "false_positive_gaps": fairness,
        "tokenizer": manifest.tokenizer.model_dump(include={"name", "backend", "version"}),
        "decontaminated_against": sorted((config.get("decontaminate") or {}).get("checksums", {})),
        "damaged": {record.path: record.damage for record in manifest.inputs if record.damage},
        "samples": {"kept": shards["samples"].get("kept", []), "dropped": dropped["samples"]},
    }


def _stages(reasons: dict[str, int]) -> dict[str, int]:
    stages: dict[str, int] = {}
    for reason, count in reasons.items():
        stage = reason.partition(".")[0] if "." in reason else reason
        stages[stage] = stages.get(stage, 0) + count
    return stages
