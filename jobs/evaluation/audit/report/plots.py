"""Plots of an audit: rates with intervals, reliability, subgroups, false positives by group, exposure."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ropewalk.jobs.runs.show.plots import EVENT, MUTED, TRAIN, VALIDATION, as_png, draw_reliability, dress

TERMS_SHOWN = 20
Draw = Callable[[Any, Any], None]


def draw_all(plots: Mapping[str, Any]) -> dict[str, bytes]:
    """Return every plot that has values as a PNG, by title."""
    pictures: dict[str, bytes] = {}
    for name, values in plots.items():
        if name not in DRAWING_FUNCTIONS or not values:
            continue
        for title, part in values.items() if isinstance(values, dict) else [(name, values)]:
            height = max(2.6, min(0.9 + 0.24 * len(part), 8.0))
            pictures[str(title)] = as_png(partial(_draw, DRAWING_FUNCTIONS[name], part), (6.4, height))
    return pictures


def _draw(draw: Draw, part: Any, axis: Any) -> None:
    draw(axis, part)


def draw_rates(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a point per suite and kind of bias with its interval, and the ideal."""
    for position, row in enumerate(reversed(rows)):
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [position, position], color=TRAIN, alpha=0.5, linewidth=2)
        axis.plot([row["rate"]], [position], "o", color=TRAIN if row["bias"] != "all" else VALIDATION, markersize=5)
    axis.axvline(0.5, color=MUTED, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(rows)), [f"{row['suite']}: {row['bias']} ({row['pairs']})" for row in reversed(rows)])
    axis.set_xlim(0, 1)
    dress(axis, "share in which the stereotype is likelier, 95% interval")


def draw_subgroups(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw bits per byte of each group with two standard errors to both sides."""
    order = sorted(rows, key=lambda row: row["bits_per_byte"])
    errors = [2 * (row["standard_error"] or 0) for row in order]
    axis.barh([row["group"] for row in order], [row["bits_per_byte"] for row in order], xerr=errors, color=TRAIN, alpha=0.6)
    dress(axis, "bits per byte by group")


def draw_identity(axis: Any, rows: Sequence[Sequence[Any]]) -> None:
    """Draw the terms whose harmless texts are flagged most often."""
    bars = list(reversed(rows[:TERMS_SHOWN]))
    axis.barh([term for term, _ in bars], [rate for _, rate in bars], color=EVENT, alpha=0.6)
    axis.set_xlim(0, 1)
    dress(axis, "harmless texts flagged, by group")


def draw_canaries(axis: Any, rows: Sequence[Sequence[Any]]) -> None:
    """Draw exposure against repetitions; extracted canaries are filled."""
    for repeats, exposure, extracted in rows:
        axis.plot([repeats], [exposure], "o", color=EVENT, fillstyle="full" if extracted else "none")
    axis.set_xlabel("repetitions in the training data")
    dress(axis, "exposure of canaries, bits (filled: extracted)")


DRAWING_FUNCTIONS: dict[str, Draw] = {
    "rates": draw_rates,
    "reliability": draw_reliability,
    "reliability of tasks": draw_reliability,
    "subgroups": draw_subgroups,
    "identity": draw_identity,
    "canaries": draw_canaries,
}
