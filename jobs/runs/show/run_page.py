"""HTML pages of a run: its facts and settings, and links to related pages."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.page import Link, Table, date_words, folded, page, paragraph
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically

PAGES = {
    "sweep.html": "sweep",
    "samples.html": "trained tokens",
    "curves.png": "curves",
    "distill/report.html": "distillation",
    "evaluation/report.html": "evaluation",
    "evaluation/comparison-*.html": "comparison",
    "audit/report.html": "audit",
    "compress/report.html": "variants",
    "report.html": "refresh",
}
DATA_REPORT = "report/report.html"
_RELATED_KEYS = ("model", "teacher", "before", "watch", "start_from")  # keys that may name another run


def write_run_page(
    run: RunDir,
    path: Path,
    kind: str,
    sections: Sequence[str],
    *,
    subject: str = "",
    facts: Mapping[str, object] | None = None,
    script: str = "",
) -> Path:
    """Write a page about a run, or about `subject`, with the run's settings, and return its path."""
    config: dict[str, Any] = run.record.get("config") or {}
    about = {"run": run.id, "written": date_words(), "seed": config.get("seed"), **(facts or {})}
    set_keys = {key: value for key, value in config.items() if value not in (None, {}, [], "")}
    settings = folded(f"Settings of {run.id}", yaml.safe_dump(set_keys, sort_keys=False, allow_unicode=True))
    links = [Link(text, os.path.relpath(target, path.parent)) for text, target in related_files(run, path)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(kind, subject or run.id, [*sections, settings], facts=about, links=links, script=script))
    return path


def gate_sections(gate: Mapping[str, Any] | None) -> list[str]:
    """Return the sections on the result of a gate; none if there was no gate."""
    if gate is None or gate["passed"]:
        return [] if gate is None else [paragraph("The gate: passed.", "good")]
    table = Table("", ("condition", "result"))
    for condition in gate["failed"]:
        table.row(f"{condition['name']} {condition['require']}", condition["words"])
    return [paragraph("The gate: refused.", "bad"), table.html()]


def subject_of(model: str) -> str:
    """Return the name of a model: that of its run, alias or version, or the last part of its path."""
    return model.rstrip("/").rpartition("/")[2] or model


def related_files(run: RunDir, path: Path) -> Iterator[tuple[str, Path]]:
    """Yield names and paths of existing files that belong to a page: of its run, of related runs, and of its data sets."""
    for file in (path.with_suffix(".json"), path.with_name("items.jsonl")):
        if file.is_file():
            yield file.name, file
    yield from ((name, file) for name, file in _pages_of(run.path) if file != path)
    config: dict[str, Any] = run.record.get("config") or {}
    named = [run.record.get("parent"), *(config.get(key) for key in _RELATED_KEYS)]
    for value in named:
        reference = value.get("run") if isinstance(value, Mapping) else value
        if isinstance(reference, str) and ((folder := run.path.parent / reference) / "run.yaml").is_file() and folder != run.path:
            yield from ((f"{name} of {folder.name}", file) for name, file in _pages_of(folder))
    for data in _data_paths(config.get("data")):
        if (report := data / DATA_REPORT).is_file():
            yield f"data set {data.name}", report


def _pages_of(folder: Path) -> Iterator[tuple[str, Path]]:
    for pattern, name in PAGES.items():
        for file in sorted(folder.glob(pattern)):
            other = file.stem.removeprefix("comparison-")
            yield (name if "*" not in pattern else f"{name} with {other}"), file


def _data_paths(data: Any) -> Iterator[Path]:
    for entry in data if isinstance(data, list) else [data]:
        path = entry.get("path") if isinstance(entry, Mapping) else entry
        if isinstance(path, str) and path.startswith("/"):
            yield Path(path)
