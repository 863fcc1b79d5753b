"""The table of variants: compress/table.json, and compress/report.html with the Pareto front."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.page import Table, paragraph, picture
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.evaluation.tasks.scoring import first_metric
from ropewalk.jobs.runs.show.plots import TRAIN, VALIDATION, as_png, dress
from ropewalk.jobs.runs.show.run_page import gate_sections, subject_of, write_run_page

FOLDER, TABLE, PAGE = "compress", "table.json", "report.html"
Row = Mapping[str, Any]


def pareto(rows: Sequence[Row], cost: str) -> list[str]:
    """Return the variants that no other one dominates in bits per byte and this cost."""
    measured = [row for row in rows if row.get(cost) is not None]
    return [
        row["variant"]
        for row in measured
        if not any(
            other[cost] <= row[cost]
            and other["bits_per_byte"] <= row["bits_per_byte"]
            and (other[cost], other["bits_per_byte"]) != (row[cost], row["bits_per_byte"])
            for other in measured
        )
    ]


def write_report(run: RunDir, model: str, rows: Sequence[Row], gate: Mapping[str, Any] | None) -> Path:
    """Write table.json and report.html into the run and return the page."""
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    fronts = {cost: pareto(rows, cost) for cost in ("bytes", "per_token_ms")}
    write_json(folder / TABLE, {"model": model, "table": list(rows), "pareto": fronts, "gate": gate})
    sections = [
        *gate_sections(gate),
        paragraph(
            "Bits per byte and KL (from the dense model, nats per token) were measured in the "
            "engine that serves the variant, speed and memory in a separate process each, all on one machine in one run."
        ),
        paragraph(
            "Of GGUF's formats only F32 is the unchanged model; F16 and BF16 round weights, and in llama.cpp activations too. "
            "The notes give the deviation of a file's log-probabilities from transformers in fp32."
        ),
        _table(rows, fronts).html(),
        *(_picture(rows, cost, front) for cost, front in fronts.items() if front),
    ]
    return write_run_page(run, folder / PAGE, "Variants", sections, subject=subject_of(model), facts={"model": model})


def _table(rows: Sequence[Row], fronts: Mapping[str, Sequence[str]]) -> Table:
    tasks = tasks_of(rows)
    columns = ["variant", "engine", ">bits per byte", ">± SE", ">more than dense", ">± SE", ">KL", ">MB", ">memory MB"]
    headings = [heading for task, metric in tasks.items() for heading in (f">{task}, {metric}", ">± SE")]
    table = Table("Variants", [*columns, ">first token ms", ">ms a token", *headings, ">zeros", "Pareto", "notes"])
    for row in rows:
        best = [cost.removesuffix("_ms").replace("_", " ") for cost, front in fronts.items() if row["variant"] in front]
        table.row(
            row["variant"],
            row["engine"],
            *(format_figure(row.get(key), 4) for key in ("bits_per_byte", "standard_error")),
            *(format_figure(row.get(key), 4) for key in ("more_bits_per_byte", "more_bits_per_byte_standard_error", "kl")),
            *(format_figure(row.get(key), 1, 1e-6) for key in ("bytes", "rss")),
            *(format_figure(row.get(key), 2) for key in ("first_token_ms", "per_token_ms")),
            *(
                format_figure(row["scores"][task][metric][key], 3)
                for task, metric in tasks.items()
                for key in ("value", "standard_error")
            ),
            format_figure(row.get("zeros"), 3),
            ", ".join(best),
            "; ".join(row.get("notes") or ()),
        )
    return table


def tasks_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the scored tasks with their primary metrics."""
    return {task: first_metric(scores) for task, scores in (rows[0].get("scores") or {}).items()}


def format_figure(value: float | None, digits: int, factor: float = 1.0) -> str:
    """Format a figure of the table; empty if missing."""
    return "" if value is None else f"{value * factor:.{digits}f}"


def _picture(rows: Sequence[Row], cost: str, front: Sequence[str]) -> str:
    factor, name = (1e-6, "MB on disk") if cost == "bytes" else (1.0, "ms a token")

    def draw(axis: Any) -> None:
        for row in filter(lambda row: row.get(cost) is not None, rows):
            best = row["variant"] in front
            point = (row[cost] * factor, row["bits_per_byte"])
            axis.plot(*point, "o", color=TRAIN if best else VALIDATION, fillstyle="full" if best else "none")
            axis.annotate(row["variant"], point, xytext=(4, 3), textcoords="offset points", fontsize=7)
        on_front = sorted((row[cost] * factor, row["bits_per_byte"]) for row in rows if row["variant"] in front)
        axis.plot(*zip(*on_front, strict=True), color=TRAIN, alpha=0.4, linewidth=1)
        axis.set_xlabel(name)
        dress(axis, f"bits per byte by {name}; filled: on the Pareto front")

    return picture(f"Bits per byte and {name}", as_png(draw, (7.2, 4.2)))


def read_table(run: RunDir) -> dict[str, Any]:
    """Read the file written by `write_report`."""
    table: dict[str, Any] = json.loads((run.path / FOLDER / TABLE).read_text())
    return table
