"""Plots of a run's curves: loss, validation, learning rate, speed."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.metrics import curves

Curve = tuple[list[int], list[float]]

MOST_BARS = 25
INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
TRAIN, VALIDATION, SCHEDULE, SPEED, EVENT = "#2b6cb0", "#dd6b20", "#6b46c1", "#2f855a", "#c53030"


def plot_run(run: RunDir, path: Path) -> Path:
    """Plot the curves of a run to a PNG file. Raises DataError if there are no metrics yet."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    run_curves = curves(run)
    if "train/loss" not in run_curves:
        raise DataError(f"{run.id}: no training metrics; nothing to plot")
    with plt.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "font.family": "DejaVu Sans"}):
        figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), width_ratios=[1.7, 1], sharex=True, layout="constrained")
        figure.suptitle(run.id, x=0.012, ha="left", fontsize=12, fontweight="bold")
        _draw_loss(axes[0][0], run_curves)
        _draw(axes[1][0], run_curves, "validation/bits_per_byte", "validation, bits per byte", VALIDATION, marker="o")
        _draw(axes[0][1], run_curves, "train/learning_rate", "learning rate", SCHEDULE)
        _draw(axes[1][1], run_curves, "train/tokens_per_second", "tokens per second", SPEED, alpha=0.9)
        _mark_resumes([axis for row in axes for axis in row], run)
        for axis in axes[1]:
            axis.set_xlabel("step")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)
    return path


def as_png(draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 3.2)) -> bytes:
    """Return a PNG of what `draw` draws on one axis; `size` in inches."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "font.family": "DejaVu Sans"}):
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        draw(axis)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=130, facecolor="white", format="png")
        plt.close(figure)
    return buffer.getvalue()


def draw_bars(axis: Any, values: Mapping[str, float], title: str) -> None:
    """Draw a horizontal bar per name, the first on top."""
    shown = list(values.items())[:MOST_BARS][::-1]
    axis.barh([name for name, _ in shown], [value for _, value in shown], color=TRAIN, alpha=0.7)
    dress(axis, title)


def draw_reliability(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw accuracy against confidence, one bar per bin."""
    width = rows[0]["to"] - rows[0]["from"]
    axis.bar([row["from"] for row in rows], [row["accuracy"] for row in rows], width=width, align="edge", color=TRAIN, alpha=0.5)
    axis.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], "o-", color=TRAIN, markersize=4)
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
    axis.set_xlabel("confidence")
    dress(axis, "accuracy by confidence")


def _draw_loss(axis: Any, run_curves: Mapping[str, Curve]) -> None:
    steps, values = run_curves["train/loss"]
    smooth = moving_average(values)
    axis.plot(steps, values, color=TRAIN, alpha=0.25, linewidth=0.9)
    axis.plot(steps, smooth, color=TRAIN, linewidth=1.8, label=f"train  {values[-1]:.3f} (smoothed {smooth[-1]:.3f})")
    if "validation/loss" in run_curves:
        at, held_out = run_curves["validation/loss"]
        gaps = run_curves.get("validation/gap", ([], []))[1]
        label = f"validation  {held_out[-1]:.3f}" + (f"  (gap {gaps[-1]:+.3f})" if gaps else "")
        axis.plot(at, held_out, color=VALIDATION, linewidth=1.6, marker="o", markersize=4, label=label)
        train = dict(zip(steps, smooth, strict=True))
        both = [(step, train[step], value) for step, value in zip(at, held_out, strict=True) if step in train]
        if both and gaps:  # the area between the curves shows overfitting
            axis.fill_between(*zip(*both, strict=True), color=VALIDATION, alpha=0.1, linewidth=0)
    dress(axis, "loss, nats per token")
    axis.legend(frameon=False, loc="upper right")


def _draw(axis: Any, run_curves: Mapping[str, Curve], key: str, title: str, color: str, **style: Any) -> None:
    if key in run_curves:
        steps, values = run_curves[key]
        axis.plot(steps, values, color=color, linewidth=1.6, markersize=4, **style)
        dress(axis, f"{title}   (last {values[-1]:,.3g})" if values[-1] < 1000 else f"{title}   (last {values[-1]:,.0f})")
    else:
        dress(axis, title)
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color=MUTED)


def dress(axis: Any, title: str) -> None:
    """Apply the common style of all plots to an axis."""
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.grid(True, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=MUTED, length=0)
    axis.margins(x=0.01)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(side == "bottom")
        axis.spines[side].set_color(GRID)


def _mark_resumes(axes: list[Any], run: RunDir) -> None:
    """Draw a thin line at each step at which the run resumed."""
    steps = resume_steps(run)
    for axis in axes:
        for step in steps:
            axis.axvline(step, color=EVENT, linewidth=1, linestyle=(0, (2, 3)), alpha=0.8)
    if steps:
        axes[0].annotate(
            "resumed", (steps[0], 0.02), xycoords=("data", "axes fraction"), color=EVENT, fontsize=8,
            xytext=(4, 0), textcoords="offset points",
        )  # fmt: skip


def resume_steps(run: RunDir) -> list[int]:
    """Return the steps at which the run resumed from a checkpoint: the step decreases, or the attempt changes."""
    steps, previous, attempt = [], -1, None
    for line in run.read_metrics():
        step = int(line["step"])
        if previous >= 0 and (step < previous or line["attempt"] != attempt):
            steps.append(step)
        previous, attempt = step, line["attempt"]
    return steps


def moving_average(values: list[float]) -> list[float]:
    """Return the exponential moving average over a tenth of the values so far, at most 50 or a twentieth of all.

    The window grows from one value, so that the average does not lag behind the steep beginning of a loss.
    """
    average, averages = 0.0, []
    for number, value in enumerate(values, 1):
        average += (value - average) / max(1.0, min(50.0, len(values) / 20, number / 10))
        averages.append(average)
    return averages
