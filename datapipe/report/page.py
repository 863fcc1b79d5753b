"""The HTML page of a data set: what was kept, dropped and changed, with samples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ropewalk.cluster.page import Link, Table, bars, folded, heading, page, paragraph
from ropewalk.datapipe.manifest import Manifest

PAGE = "report/report.html"
MOST_ROWS = 20  # of a chart; the others are summed
_DEEPEST = 4  # folders by which sources are grouped
_INPUTS_SHOWN = 3


def data_page(name: str, manifest: Manifest, report: Mapping[str, Any], day: str, links: Sequence[Link]) -> bytes:
    """Return the page of a data set. `name`: of its directory, `day`: when it was made."""
    documents, tokenizer, config = report["documents"], report["tokenizer"], manifest.config
    facts = {
        "made": day,
        "documents": f"{documents['kept']:,} kept, {documents['dropped']:,} dropped",
        "tokens": f"{report['tokens']:,}",
        "text": f"{report['bytes'] / 1e6:,.1f} MB",
        "tokenizer": f"{tokenizer['name']} ({tokenizer['backend']} {tokenizer['version']})",
        "input": _input_words(config.get("input")),
        "content": manifest.hash,
    }
    settings = {key: value for key, value in config.items() if value not in (None, {}, [], "")}
    sections = [
        _splits(manifest),
        bars("Dropped, by stage", _by_size(report["stages"]), "documents") if report["stages"] != report["reasons"] else "",
        bars("Dropped, by reason", _by_size(report["reasons"]), "documents"),
        _sources(report["sources"]),
        bars("Languages", _by_size(report["languages"]), "documents"),
        bars("Lengths", [(f"from {int(tokens):,} tokens", count) for tokens, count in report["lengths"].items()], "documents"),
        _balance(report["balance"]),
        bars("Personal data replaced", _by_size(report["pii"]), "items"),
        _near_duplicates(report["near_duplicates"]),
        _gaps(report["false_positive_gaps"]),
        _samples("Samples of dropped documents", report["samples"]["dropped"]),
        _samples("Samples of kept documents", {"": report["samples"]["kept"]}),
        folded("Settings", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)),
    ]
    return page("Data set", name, sections, facts=facts, links=links)


def _input_words(patterns: Any) -> str:
    listed = [patterns] if isinstance(patterns, str) else list(patterns or ())
    more = len(listed) - _INPUTS_SHOWN
    return ", ".join(map(str, listed[:_INPUTS_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _splits(manifest: Manifest) -> str:
    table = Table("Splits", ("split", ">documents", ">tokens", ">bytes", ">shards"))
    for name, count in (("train", manifest.totals.train), ("validation", manifest.totals.validation)):
        table.row(
            name,
            *(f"{number:,}" for number in (count.documents, count.tokens, count.bytes, manifest.table.of_split(name).shards)),
        )
    return table.html()


def _by_size(values: Mapping[str, int]) -> list[tuple[str, float]]:
    """Return the largest values with their names, largest first, and the sum of the others."""
    rows = sorted(((name, value) for name, value in values.items() if value), key=lambda row: (-row[1], row[0]))
    rest = rows[MOST_ROWS:]
    return [*rows[:MOST_ROWS], *([(f"{len(rest):,} others", sum(value for _, value in rest))] if rest else [])]


def group_sources(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Sum tokens, documents and dropped documents by source, of many sources by site or folder; most tokens first.

    At most `MOST_ROWS` groups; the others are summed.
    """
    groups = {name: name for name in sources}
    for depth in range(1, _DEEPEST + 1 if len(sources) > MOST_ROWS else 1):
        by_folder = {name: _folder_of(name, depth) for name in sources}
        if len(set(by_folder.values())) > 1:
            groups = by_folder
            break
    sums: dict[str, dict[str, float]] = {}
    for name, row in sources.items():
        total = sums.setdefault(groups[name], {"tokens": 0, "documents": 0, "dropped": 0})
        for key in total:
            total[key] += row[key]
    ordered = sorted(sums, key=lambda group: (-sums[group]["tokens"], -sums[group]["dropped"], group))
    shown, rest = ordered[:MOST_ROWS], ordered[MOST_ROWS:]
    others = {key: sum(sums[group][key] for group in rest) for key in ("tokens", "documents", "dropped")}
    return {group: sums[group] for group in shown} | ({f"{len(rest):,} others": others} if rest else {})


def _folder_of(name: str, depth: int) -> str:
    """Return the first folders of a path, or the site and first folders of a URL."""
    parts = name.partition("://")[2].split("/") if "://" in name else name.split("/")[:-1]
    return "/".join(parts[:depth]) or "files in no folder"


def _sources(sources: Mapping[str, Mapping[str, Any]]) -> str:
    groups = group_sources(sources)
    columns = {key: [f"{row[key]:,}" for row in groups.values()] for key in ("documents", "dropped")}
    title = "Sources" if len(groups) >= len(sources) else f"Sources: {len(sources):,} in {len(groups):,} groups"
    return bars(title, [(name, row["tokens"]) for name, row in groups.items()], "tokens", columns)


def _balance(balance: Mapping[str, Any] | None) -> str:
    if not balance:
        return ""
    shares = sorted(balance["shares"].items(), key=lambda item: -item[1]["share"])
    epochs = [f"{row['epochs']:.2f}" for _, row in shares]
    rows = [(name, round(100 * row["share"], 1)) for name, row in shares]
    return bars(f"Balanced by {balance['by']}", rows, "% of the training text", {"epochs": epochs})


def _near_duplicates(near: Mapping[str, Any] | None) -> str:
    if not near:
        return ""
    sizes = [(f"clusters of {size}", count) for size, count in near["sizes"].items()]
    summary = f"{near['clusters']:,} clusters; {near['candidates']:,} candidates, {near['similar']:,} similar pairs."
    return (bars("Near-duplicates", sizes, "clusters") or heading("Near-duplicates")) + paragraph(summary)


def _gaps(filters: Mapping[str, Any]) -> str:
    if not filters:
        return ""
    terms = len(next(iter(filters.values()))["terms"])
    title = f"False positives: harmless texts about {terms} groups of people"
    note = "texts that differ only in the term; report.json lists all terms"
    table = Table(title, ("filter", ">rate", "largest gap", ">gap", ">95% interval"), note)
    for name, gaps in filters.items():
        gap = gaps["largest_gap"]
        low, high = gap["interval"]
        table.row(name, f"{gaps['rate']:.1%}", gap["term"], f"{gap['gap']:+.1%}", f"{low:+.1%} to {high:+.1%}")
    return table.html()


def _samples(title: str, groups: Mapping[str, Iterable[Mapping[str, str]]]) -> str:
    shown = "".join(
        folded(
            f"{reason}: {sample['id']}" if reason else sample["id"],
            sample["text"],
            "" if sample["source"] in sample["id"] else sample["source"],  # an id may be made of its source
        )
        for reason, samples in groups.items()
        for sample in samples
    )
    return heading(title) + shown if shown else ""
