"""Plots of a sweep: parallel coordinates, history, curves, importance. Stopped trials are lighter than finished ones."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ropewalk.cluster.text import format_parameters
from ropewalk.jobs.orchestration.sweep.report.importance import Importance
from ropewalk.jobs.orchestration.sweep.report.outlook import expected_best
from ropewalk.jobs.orchestration.sweep.report.plot_axes import axes_of
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, TrialResult, format_metric
from ropewalk.jobs.runs.show.plots import EVENT, INK, MUTED, TRAIN, VALIDATION, dress

BEST, FINISHED, STOPPED = VALIDATION, TRAIN, "#b8c4d0"
UNSET = -0.09  # position on the axis of a parameter that is not set
RANK_LABELS = 12  # labels on the axis of ranks
MOST_ENDS = 40  # up to so many trials, ends are marked by points
MOST_RUNGS = 8  # with more different steps of stopped trials, there are no rungs
MANY = 12  # from so many values on, a few may lie beyond the edge
VISIBLE_SHARE = 0.9  # share of the values that fits on the scale; a few diverged ones must not flatten the others


def draw_parallel(axis: Any, results: SweepResults) -> None:
    """Draw a line per trial through its parameters to its rank, with the best trial on top."""
    trials = results.eligible
    axes = axes_of(results.run.record["config"].get("space") or {}, trials)
    unset = any(a.key not in t.parameters for a in axes for t in trials)
    # by rank, because the values of stopped trials would compress those of the others
    ranks = {trial.trial: 1 - rank / max(1, len(trials) - 1) for rank, trial in enumerate(trials)}
    for trial in reversed(trials):  # the best is drawn last, above the others
        heights = [a.position(trial.parameters[a.key]) if a.key in trial.parameters else UNSET for a in axes]
        axis.plot(*_bent([*heights, ranks[trial.trial]]), **_style(trial, results))
    labelled = trials[:: max(1, -(-len(trials) // RANK_LABELS))]
    values = [(ranks[t.trial], format_metric(float(t.metric or 0))) for t in labelled]
    columns = [(a.key, a.ticks()) for a in axes] + [(f"{results.metric}, by rank", values)]
    for x, (name, ticks) in enumerate(columns):
        _draw_scale(axis, x, _name(name, len(columns)), ticks, last=x == len(columns) - 1)
    if unset:
        axis.annotate("not set", (0, UNSET), xytext=(-6, 0), textcoords="offset points", ha="right", va="center",
                      fontsize=8, color=MUTED)  # fmt: skip
    axis.set(xlim=(-0.45, len(columns) - 0.55), ylim=(UNSET - 0.05 if unset else -0.04, 1.04))
    axis.set_axis_off()


def _draw_scale(axis: Any, x: int, name: str, ticks: Sequence[tuple[float, str]], *, last: bool) -> None:
    axis.plot([x, x], [0, 1], color=INK if last else MUTED, linewidth=1.6 if last else 1.0, zorder=5)
    side, ha = (6, "left") if last else (-5, "right")
    box = {"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    beside = {"textcoords": "offset points", "color": INK, "zorder": 6}
    for position, label in ticks:
        axis.annotate(label, (x, position), xytext=(side, 0), ha=ha, va="center", fontsize=8, bbox=box, **beside)
    weight = "bold" if last else "normal"
    axis.annotate(name, (x, 1), xytext=(0, 10), ha="center", va="bottom", fontsize=9, fontweight=weight, **beside)


def draw_history(axis: Any, results: SweepResults) -> None:
    """Draw each trial's metric in order of start, and the best so far."""
    trials = [t for t in results.trials if t.metric is not None and t.state != "FAILED"]
    values = [float(t.metric or 0) for t in trials]
    _limit(axis, results, values)
    low, high = axis.get_ylim()
    for kind, label, style in (
        ("STOPPED", "stopped", {"color": "white", "edgecolor": STOPPED, "linewidth": 1.4}),
        ("", "finished", {"color": FINISHED, "edgecolor": "white", "linewidth": 0.6}),
    ):
        group = [t for t in trials if (t.state == "STOPPED") == (kind == "STOPPED")]
        if group:
            heights = [min(max(float(t.metric or 0), low), high) for t in group]  # outliers are drawn at the edge
            axis.scatter([t.trial for t in group], heights, s=34, zorder=3, label=label, clip_on=False, **style)
    failed = [t.trial for t in results.trials if t.state == "FAILED"]
    if failed:
        edge = [high if results.mode == "min" else low] * len(failed)
        axis.scatter(failed, edge, marker="x", color=EVENT, s=28, zorder=4, label="failed", clip_on=False)
    best = list(itertools.accumulate(values, min if results.mode == "min" else max))
    axis.step([t.trial for t in trials], best, where="post", color=BEST, linewidth=1.8, zorder=2, label="best so far")
    _draw_expectation(axis, results)
    dress(axis, f"{results.metric} of each trial, in order of start")
    axis.set_xlabel("trial")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.margins(x=0.03)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, columnspacing=1.2)


def _draw_expectation(axis: Any, results: SweepResults) -> None:
    """Draw the metric to expect of the best trial with new seeds, with two standard errors, behind the last trial."""
    expected = expected_best(results)
    if expected is None:
        return
    low, high = axis.get_ylim()
    reach = 2 * (expected.error or 0.0)
    axis.errorbar(len(results.trials) + 0.5, expected.metric, reach, color=EVENT, marker="D", markersize=5, capsize=3,
                  label="best with new seeds")  # fmt: skip
    axis.set_ylim(min(low, expected.metric - 1.1 * reach), max(high, expected.metric + 1.1 * reach))


def draw_curves(axis: Any, results: SweepResults) -> None:
    """Draw the metric of each trial over the steps."""
    trials = [t for t in reversed(results.eligible) if t.points]
    for trial in trials:
        steps, values = zip(*trial.points, strict=True)
        style = _style(trial, results)
        axis.plot(steps, values, **style)
        if (trial.state == "STOPPED" and len(trials) <= MOST_ENDS) or len(steps) == 1:
            axis.plot(steps[-1:], values[-1:], marker="o", markersize=3, color=style["color"], zorder=style["zorder"])
    _limit(axis, results, [value for t in trials for _, value in t.points])
    _draw_rungs(axis, results)
    dress(axis, f"{results.metric} over the steps")
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_rungs(axis: Any, results: SweepResults) -> None:
    """Draw a line at each step at which the scheduler stopped trials, with their number and that of all that came there."""
    stopped = Counter(trial.stopped_at for trial in results.trials if trial.stopped_at)
    if len(stopped) > MOST_RUNGS:
        return
    for step, count in sorted(stopped.items()):
        arrived = sum(1 for trial in results.trials if trial.steps >= step)
        axis.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
        axis.annotate(f"{count} of {arrived}\nstopped", (step, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
                      textcoords="offset points", ha="left", va="top", fontsize=7, color=MUTED)  # fmt: skip


def draw_importance(axis: Any, importance: Importance) -> None:
    """Draw a bar per parameter, with a mark at the share that chance alone reaches."""
    keys = list(importance.shares)[::-1]
    dress(axis, "importance of parameters (PED-ANOVA, shares of 1)")
    if not keys:
        axis.set_axis_off()
        axis.text(0.0, 0.9, importance.caution, transform=axis.transAxes, color=MUTED, fontsize=9, va="top", wrap=True)
        return
    shares, chance = [importance.shares[k] for k in keys], [importance.chance[k] for k in keys]
    colors = [FINISHED if share > limit else STOPPED for share, limit in zip(shares, chance, strict=True)]
    axis.barh(keys, shares, color=colors, height=0.56, zorder=2)
    for row, (share, limit) in enumerate(zip(shares, chance, strict=True)):
        axis.plot([min(limit, 1.0)] * 2, [row - 0.38, row + 0.38], color=INK, linewidth=1.4, zorder=3)
        axis.annotate(f"{share:.2f}", (max(share, min(limit, 1.0)), row), xytext=(6, 0), textcoords="offset points",
                      va="center", fontsize=8, color=INK)  # fmt: skip
    axis.set(xlim=(0, max(1.0, *shares) * 1.12), ylim=(-0.6, len(keys) - 0.4))
    axis.tick_params(axis="y", labelcolor=INK)
    axis.grid(False, axis="y")
    legend = f"vertical mark: 95th percentile with shuffled metrics (n = {importance.n})"
    axis.set_xlabel(f"{legend}\n{importance.caution}" if importance.caution else legend, fontsize=8)


def _style(trial: TrialResult, results: SweepResults) -> dict[str, Any]:
    best = results.best
    if best is not None and trial.trial == best.trial:
        return {"color": BEST, "linewidth": 2.4, "alpha": 1.0, "zorder": 4, "solid_capstyle": "round"}
    if trial.state == "STOPPED":
        return {"color": STOPPED, "linewidth": 0.9, "alpha": 0.75, "zorder": 1}
    return {"color": FINISHED, "linewidth": 1.3, "alpha": 0.8, "zorder": 3}


def _range(values: Sequence[float], mode: str) -> tuple[float, float]:
    """Return the range of the values, without a few far outliers on the bad side if there are many values."""
    ordered = sorted(values, reverse=mode == "max")
    best, last_visible, worst = ordered[0], ordered[int(VISIBLE_SHARE * (len(ordered) - 1))], ordered[-1]
    end = last_visible if len(values) >= MANY and abs(worst - best) > 2 * abs(last_visible - best) > 0 else worst
    return min(best, end), max(best, end)


def _limit(axis: Any, results: SweepResults, values: Sequence[float]) -> None:
    low, high = _range(values, results.mode)
    pad = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    axis.set_ylim(low - pad, high + pad)
    axis.ticklabel_format(axis="y", useOffset=False)


def _bent(heights: Sequence[float], points: int = 24) -> tuple[Any, Any]:
    """Return a smooth line through one height per axis, horizontal at each."""
    import numpy as np

    xs = np.linspace(0, len(heights) - 1, points * (len(heights) - 1) + 1)
    left = np.minimum(xs.astype(int), len(heights) - 2)
    t, values = xs - left, np.asarray(heights)
    return xs, values[left] + (values[left + 1] - values[left]) * t * t * (3 - 2 * t)


def _name(key: str, columns: int) -> str:
    """Break a long key into two lines if there are many axes."""
    return key if columns <= 4 else key.replace(".", ".\n", 1).replace("/", "/\n", 1)


def title_of(results: SweepResults) -> str:
    """Return the title of a plot."""
    best = results.best
    if best is None or best.metric is None:
        return results.run.id
    return f"best: trial {best.trial}, {results.metric} {format_metric(best.metric)}   {format_parameters(best.parameters)}"
