"""Plots of a data set's report for trackers; report.html has its own."""

import json
from functools import partial
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.report.page import group_sources
from ropewalk.datapipe.report.report import REPORT
from ropewalk.jobs.results.readable import write_picture, write_table
from ropewalk.jobs.runs.show.plots import as_png, draw_bars


def write_pictures(run: RunDir, output: StoragePath) -> None:
    """Draw drop reasons, grouped sources, languages and lengths, each only if there are values."""
    report: dict[str, Any] = json.loads(output.read(REPORT))
    sources = {name: int(row["tokens"]) for name, row in group_sources(report["sources"]).items()}
    charts = {
        "dropped": (_by_size(report["reasons"]), "documents dropped, by reason"),
        "sources": (_by_size(sources), "tokens kept, by source"),
        "languages": (_by_size(report["languages"]), "documents kept, by language"),
        "lengths": ({f"from {tokens}": count for tokens, count in report["lengths"].items()}, "documents, by tokens"),
    }
    for name, (values, title) in charts.items():
        if values:
            height = 0.9 + 0.24 * min(len(values), 25)
            write_picture(run.path, name, as_png(partial(draw_bars, values=values, title=title), (6.4, height)))
    groups = {**report["samples"]["dropped"], "kept": report["samples"]["kept"]}
    rows = [[outcome, sample.get("id"), sample.get("text")] for outcome, samples in groups.items() for sample in samples]
    write_table(run.path, "documents", ("outcome", "document", "text"), rows)


def _by_size(values: dict[str, int]) -> dict[str, float]:
    return {name: value for name, value in sorted(values.items(), key=lambda item: -item[1]) if value}
