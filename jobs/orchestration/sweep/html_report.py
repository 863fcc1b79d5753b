"""Plots of a sweep, and a self-contained HTML page."""

import base64
import html
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.text import format_value
from ropewalk.jobs.orchestration.sweep.importance import Importance, importance_of
from ropewalk.jobs.orchestration.sweep.plots import draw_curves, draw_history, draw_importance, draw_parallel, title_of
from ropewalk.jobs.orchestration.sweep.results import SweepResults, TrialResult, format_metric, read_sweep
from ropewalk.jobs.results.readable import write_picture, write_table
from ropewalk.jobs.runs.show.plots import INK, MUTED, as_png
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
    write_atomically(page, _page(results, importance, plots))
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

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff }
body { margin: 2.5rem auto; max-width: 72rem; padding: 0 1.5rem }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
.muted { color: #7b8794; font-weight: 400 }
img { max-width: 100%; height: auto; display: block }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
.row > img { flex: 1 1 26rem; min-width: 0; max-width: 44rem }
.facts { display: flex; flex-wrap: wrap; gap: .8rem 2.4rem; margin: 1.2rem 0 }
.facts b { display: block; font-size: 1.15rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; width: 100%; font-variant-numeric: tabular-nums }
th { color: #7b8794; text-align: left; font-weight: 500; cursor: pointer }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e7eb; white-space: nowrap }
.n { text-align: right }
td:last-child { white-space: normal }
.best td { font-weight: 700; background: #fff7ef }
.stopped td { color: #7b8794 }
.failed td { color: #c53030 }
"""
# clicking a column's name sorts by it, clicking again reverses; numbers numerically, empty cells last
_SCRIPT = """
const body = document.querySelector('tbody')
function value(row, place) {
  const text = row.cells[place].dataset.value ?? row.cells[place].textContent
  return text !== '' && !isNaN(text) ? Number(text) : text
}
document.querySelectorAll('th').forEach((head, place) => head.addEventListener('click', () => {
  const sign = head.dataset.sign === '1' ? -1 : 1
  head.dataset.sign = sign
  const rows = [...body.rows].sort((one, other) => {
    const x = value(one, place), y = value(other, place)
    return (x === '') - (y === '') || sign * (x > y ? 1 : x < y ? -1 : 0)
  })
  body.append(...rows)
}))
"""


def _page(results: SweepResults, importance: Importance, pictures: Mapping[str, Path]) -> str:
    images = {name: _image(path, name) for name, path in pictures.items()}
    name = html.escape(results.run.id)
    caution = f' <span class="muted">{html.escape(importance.caution)}</span>' if importance.caution else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{name}</title><style>{_STYLE}</style></head><body>
<h1>{name}</h1><p class="muted">{html.escape(title_of(results))}</p>
{_facts(results)}
<h2>Parameters and metric of each trial</h2>{images["parallel"]}
<h2>Trials</h2><div class="row">{images["history"]}{images["curves"]}</div>
<h2>Importance{caution}</h2><div class="row">{images["importance"]}</div>
<h2>All trials</h2><div class="scroll">{_table(results)}</div>
<script>{_SCRIPT}</script></body></html>
"""


def _image(path: Path, name: str) -> str:
    return f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _facts(results: SweepResults) -> str:
    best, full = results.best, results.full
    facts = {
        f"best {results.metric}": format_metric(best.metric) if best is not None and best.metric is not None else "none",
        "trials": f"{len(results.trials)} ({results.states})",
        "steps spent": f"{results.spent:,}" + (f", {results.spent / full:.0%} of all complete trials" if full else ""),
        "steps saved": f"{results.saved:,}",
        "time of all trials": duration(results.seconds),
    }
    cells = "".join(f'<div><span class="muted">{html.escape(k)}</span><b>{html.escape(v)}</b></div>' for k, v in facts.items())
    return f'<div class="facts">{cells}</div>'


def _table(results: SweepResults) -> str:
    names = ["trial", "state", results.metric, "steps", "seconds", *results.keys, "run", "cause"]
    rows = "\n".join(_row(trial, results.keys, results.best) for trial in results.ranked)
    return f"<table><thead><tr>{_cells(names, 'th')}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _row(trial: TrialResult, keys: list[str], best: TrialResult | None) -> str:
    values = [trial.trial, trial.state.lower(), trial.metric, trial.steps, round(trial.seconds)]
    values += [trial.parameters.get(key) for key in keys]
    kind = "best" if best is not None and best.trial == trial.trial else trial.state.lower()
    return f'<tr class="{kind}">{_cells([*values, " ".join(trial.runs), trial.cause])}</tr>'


def _cells(values: Sequence[Any], tag: str = "td") -> str:
    """Return a table cell per value; numbers are rounded, right-aligned, and sorted by their full value."""
    cells = ""
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        attributes = f' class="n" data-value="{value}"' if number else ""
        text = "" if value is None else format_value(value)
        if number:
            text = format_metric(value) if value % 1 else f"{value:,}"
        cells += f"<{tag}{attributes}>{html.escape(text)}</{tag}>"
    return cells
