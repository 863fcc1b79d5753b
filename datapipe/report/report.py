"""Build report.json from the manifest and the facts that tasks collected, and report.html from it.

The page has no scripts, fonts or links, and its plots are SVG; it is deterministic.
"""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest
from ropewalk.datapipe.report.samples import Facts

FOLDER = "report"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d5dde5}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:right}td:first-child,th:first-child{text-align:left}
details{margin:.4rem 0}pre{white-space:pre-wrap;background:#f3f6f9;padding:.6rem;border-radius:4px;font-size:13px}
svg text{font:12px system-ui,sans-serif;fill:#1c2733}.note{color:#5b6b7b}
"""
WIDTH, LABEL, ROW = 760, 220, 20
MOST_ROWS = 40


def write_report(output: StoragePath, manifest: Manifest, shards: Facts, dropped: Facts, fairness: dict[str, Any]) -> None:
    """Write report.json and report.html."""
    report = make_report(manifest, shards, dropped, fairness)
    output.write(f"{FOLDER}/report.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    output.write(f"{FOLDER}/report.html", page(report).encode())


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


def page(report: Mapping[str, Any]) -> str:
    """Render a report as HTML."""
    documents = report["documents"]
    epochs = {name: round(100 * row["epochs"]) for name, row in report["sources"].items() if "epochs" in row}
    parts = [
        f"<p>{documents['kept']:,} documents kept, {documents['dropped']:,} dropped; {report['tokens']:,} tokens,"
        f" {report['bytes'] / 1e6:,.1f} MB of text; tokenizer {escape(report['tokenizer']['name'])}"
        f" ({escape(report['tokenizer']['backend'])} {escape(report['tokenizer']['version'])}).</p>",
        _chart("Dropped, by stage", report["stages"], "documents"),
        _chart("Dropped, by reason", report["reasons"], "documents"),
        _chart("Sources, kept", {name: row["tokens"] for name, row in report["sources"].items()}, "tokens"),
        _chart("Epochs by source", epochs, "hundredths of an epoch"),
        _chart("Sources, dropped", {name: row["dropped"] for name, row in report["sources"].items()}, "documents"),
        _chart("Languages, kept", report["languages"], "documents"),
        _chart(
            "Lengths", {f"from {name} tokens": count for name, count in report["lengths"].items()}, "documents", by_size=False
        ),
        _balance(report["balance"]),
        _chart("Personal data replaced", report["pii"], "items"),
        _near(report["near_duplicates"]),
        _gaps(report["false_positive_gaps"]),
        _samples("Samples of dropped documents", report["samples"]["dropped"]),
        _samples("Samples of kept documents", {"kept": report["samples"]["kept"]}),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>Data set</title>"
        f"<style>{STYLE}</style>\n<h1>Data set</h1>\n{body}\n"
    )


def _chart(title: str, values: Mapping[str, int], unit: str, by_size: bool = True) -> str:
    """Render a bar chart; the longest bar first, unless the order of the values has a meaning."""
    rows = [(name, value) for name, value in values.items() if value]
    if not rows:
        return ""
    if by_size:
        rows.sort(key=lambda row: (-row[1], row[0]))
    shown, most = rows[:MOST_ROWS], max(value for _, value in rows)
    bars = "".join(_bar(at, name, value, most) for at, (name, value) in enumerate(shown))
    rest = f"<p class=note>and {len(rows) - MOST_ROWS} more</p>" if len(rows) > MOST_ROWS else ""
    height = len(shown) * ROW
    return f'<h2>{escape(title)} <span class=note>({unit})</span></h2><svg width="{WIDTH}" height="{height}">{bars}</svg>{rest}'


def _bar(at: int, name: str, value: int, most: int) -> str:
    width = max((WIDTH - LABEL - 110) * value / most, 1)
    label = escape(name if len(name) <= 34 else name[:16] + "…" + name[-16:])
    return (
        f'<text x="{LABEL - 8}" y="{at * ROW + 14}" text-anchor="end">{label}</text>'
        f'<rect x="{LABEL}" y="{at * ROW + 3}" width="{width:.1f}" height="{ROW - 6}" fill="#3b76b0"/>'
        f'<text x="{LABEL + width + 6:.1f}" y="{at * ROW + 14}">{value:,}</text>'
    )


def _balance(balance: Mapping[str, Any] | None) -> str:
    if not balance:
        return ""
    shares = {f"{name}, {row['epochs']:.2f} epochs": round(100 * row["share"]) for name, row in balance["shares"].items()}
    return _chart(f"Balanced by {balance['by']}", shares, "% of the training text")


def _near(near: Mapping[str, Any] | None) -> str:
    if not near:
        return ""
    sizes = {f"clusters of {size}": count for size, count in near["sizes"].items()}
    summary = f"<p>{near['clusters']:,} clusters; {near['candidates']:,} candidates, {near['similar']:,} similar pairs.</p>"
    return _chart("Near-duplicates", sizes, "clusters", by_size=False) + summary


def _gaps(filters: Mapping[str, Any]) -> str:
    if not filters:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}<td>{gaps['rate']:.1%}<td>{escape(gaps['largest_gap']['term'])}<td>{gaps['largest_gap']['gap']:+.1%}"
        f"<td>{gaps['largest_gap']['interval'][0]:+.1%} to {gaps['largest_gap']['interval'][1]:+.1%}"
        for name, gaps in filters.items()
    )
    terms = len(next(iter(filters.values()))["terms"])
    return (
        f"<h2>False positives: harmless texts about {terms} groups of people</h2><table>"
        f"<tr><th>filter<th>rate<th>largest gap<th>gap"
        f"<th>95% interval{rows}</table>"
        "<p class=note>Texts that differ only in the identity term; report.json lists all terms.</p>"
    )


def _samples(title: str, groups: Mapping[str, Iterable[Mapping[str, str]]]) -> str:
    shown = "".join(
        f"<details><summary>{escape(reason)}: {escape(sample['id'])} <span class=note>{escape(sample['source'])}</span></summary>"
        f"<pre>{escape(sample['text'])}</pre></details>"
        for reason, samples in groups.items()
        for sample in samples
    )
    return f"<h2>{escape(title)}</h2>{shown}" if shown else ""
