"""Plots of a sweep, and a self-contained HTML page."""

import html
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.page import Table, heading, image, paragraph, picture
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.text import format_value
from ropewalk.jobs.orchestration.sweep.report.importance import Importance, importance_of
from ropewalk.jobs.orchestration.sweep.report.plots import draw_curves, draw_history, draw_importance, draw_parallel, title_of
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult, format_metric, read_sweep
from ropewalk.jobs.orchestration.sweep.report.tables import steps_words, summary_rows
from ropewalk.jobs.results.readable import write_picture, write_table
from ropewalk.jobs.runs.show.plots import INK, MUTED, as_png
from ropewalk.jobs.runs.show.run_page import write_run_page
from ropewalk.jobs.runs.show.tables import duration

Drawing = tuple[tuple[float, float], Callable[[Any], None]]  # size in inches, and a function that draws on an axis
DOTS_PER_INCH = 150
LINE = 170  # characters of a line of the overview


def write_report(run: RunDir, path: Path) -> list[Path]:
    """Write an overview of all plots to `path`, each plot beside it, and the page. Raises DataError if there is no data.

    `path` may end in .png or .html: `sweep.png`, `sweep-parallel.png`, ..., `sweep.html`.
    """
    results = read_sweep(run)
    if results.best is None:
        raise DataError(f"{run.id}: no trial has reported {results.metric} yet; nothing to plot")
    importance = importance_of(results)
    drawings: dict[str, Drawing] = {
        "parallel": ((12, 4.6), lambda axis: draw_parallel(axis, results)),
        "history": ((7, 4.4), lambda axis: draw_history(axis, results)),
        "curves": ((7, 4.4), lambda axis: draw_curves(axis, results)),
        "importance": ((7, 1.9 + 0.42 * len(importance.shares)), lambda axis: draw_importance(axis, importance)),
    }
    overview, page = path.with_suffix(".png"), path.with_suffix(".html")
    path.parent.mkdir(parents=True, exist_ok=True)
    plots = _write_pictures(results, drawings, overview)
    facts = {"job": results.job, "metric": f"{results.metric} ({results.mode})"}
    write_run_page(run, page, "Sweep", _sections(results, importance, plots), facts=facts, script=_SCRIPT)
    return [overview, *plots.values(), page]


def write_readable(results: SweepResults) -> None:
    """Write trials as a table, and parallel coordinates and history as plots of the sweep's run, for trackers."""
    run = results.run.path
    keys = sorted({key for trial in results.trials for key in trial.parameters})
    rows = [[t.trial, t.run, str(t.state), t.metric, t.steps, *(t.parameters.get(key) for key in keys)] for t in results.trials]
    write_table(run, "trials", ("trial", "run", "state", results.metric, "steps", *keys), rows, figures=True)
    if results.best is not None:
        write_picture(run, "parallel-coordinates", as_png(lambda axis: draw_parallel(axis, results), (12, 4.6)))
        write_picture(run, "history", as_png(lambda axis: draw_history(axis, results), (7, 4.4)))


def _write_pictures(results: SweepResults, drawings: Mapping[str, Drawing], overview: Path) -> dict[str, Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    paths = {name: overview.with_name(f"{overview.stem}-{name}.png") for name in drawings}
    with plt.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "font.family": "DejaVu Sans"}):
        for name, (size, draw) in drawings.items():
            figure, axis = plt.subplots(figsize=size, layout="constrained")
            draw(axis)
            figure.savefig(paths[name], dpi=DOTS_PER_INCH, facecolor="white")
            plt.close(figure)
        figure = plt.figure(figsize=(14, 9.2), layout="constrained")
        figure.suptitle(results.run.id, x=0.012, ha="left", fontsize=13, fontweight="bold")
        above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1], hspace=0.04)
        above.suptitle(textwrap.fill(title_of(results), LINE), x=0.012, ha="left", fontsize=9, color=MUTED)
        drawings["parallel"][1](above.subplots())
        for axis, name in zip(below.subplots(1, 3, width_ratios=[1, 1, 0.9]), ("history", "curves", "importance"), strict=True):
            drawings[name][1](axis)
        figure.savefig(overview, dpi=DOTS_PER_INCH, facecolor="white")
        plt.close(figure)
    return paths


# --- the page

# clicking a column's name sorts by it, clicking again reverses; numbers numerically, empty cells last
_SCRIPT = """
const table = document.querySelector('.sortable'), body = table.tBodies[0]
function value(row, place) {
  const text = row.cells[place].dataset.value ?? row.cells[place].textContent
  return text !== '' && !isNaN(text) ? Number(text) : text
}
table.querySelectorAll('th').forEach((head, place) => head.addEventListener('click', () => {
  const sign = head.dataset.sign === '1' ? -1 : 1
  head.dataset.sign = sign
  const rows = [...body.rows].sort((one, other) => {
    const x = value(one, place), y = value(other, place)
    return (x === '') - (y === '') || sign * (x > y ? 1 : x < y ? -1 : 0)
  })
  body.append(...rows)
}))
"""


def _sections(results: SweepResults, importance: Importance, plots: Mapping[str, Path]) -> list[str]:
    images = {name: image(name, path.read_bytes(), wide=name == "parallel") for name, path in plots.items()}
    shares = (
        picture("Importance", plots["importance"].read_bytes())
        if importance.shares
        else heading("Importance") + paragraph(f"{importance.caution}.", "note")
    )
    return [
        _summary(results),
        heading("Parameters and metric of each trial"),
        images["parallel"],
        heading("Trials"),
        f'<div class="row">{images["history"]}{images["curves"]}</div>\n',
        shares,
        heading("All trials", "a click on a column sorts"),
        f'<div class="scroll">{_table(results)}</div>\n',
    ]


def _summary(results: SweepResults) -> str:
    summary = Table("", ("", ""))
    for name, text in summary_rows(results):
        summary.row(name, text)
    return summary.html()


def _table(results: SweepResults) -> str:
    names = ("trial", "state", results.metric, "steps", "took", *results.keys, "run", "cause")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "\n".join(_row(trial, results.keys, results.best) for trial in results.ranked)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>'


def _row(trial: TrialResult, keys: list[str], best: TrialResult | None) -> str:
    values = [trial.parameters.get(key) for key in keys]
    cells = [
        _cell(str(trial.trial), trial.trial),
        _cell(str(trial.state)),
        _cell("" if trial.metric is None else format_metric(trial.metric), trial.metric),
        _cell(steps_words(trial), trial.steps),
        _cell(duration(trial.seconds) if trial.runs else "", trial.seconds),
        *(_cell("" if value is None else format_value(value), value if _is_number(value) else None) for value in values),
        _cell(" ".join(trial.runs)),
        _cell(trial.cause or ""),
    ]
    kind = "best" if best is not None and best.trial == trial.trial else trial.state.lower()
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _cell(text: str, value: float | None = None) -> str:
    """Return a table cell; one with a value is a number, and sorted by it."""
    attributes = "" if value is None else f' class="right" data-value="{value}"'
    return f"<td{attributes}>{html.escape(text)}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
