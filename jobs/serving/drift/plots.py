"""Pictures of a comparison: lengths, languages, what a classifier says, what would be found, looks week after week."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from ropewalk.jobs.runs.show.plots import EVENT, MUTED, TRAIN, VALIDATION, as_png, dress
from ropewalk.jobs.serving.drift.detect import Drift
from ropewalk.jobs.serving.drift.monitor import Monitor

CURRENT, REFERENCE = VALIDATION, TRAIN
_LANGUAGES_SHOWN = 12


def draw_drift(drift: Drift, monitor: Monitor | None = None) -> dict[str, str]:
    """The pictures by title, as data URLs."""
    drawn: dict[str, Callable[[Any], None]] = {
        "Lengths": lambda axis: _lengths(axis, drift),
        "Languages": lambda axis: _languages(axis, drift),
        "Classifier": lambda axis: _scores(axis, drift),
    }
    if drift.calibration is not None and drift.calibration.power:
        drawn["What would be found"] = lambda axis: _power(axis, drift)
    if monitor is not None and monitor.looks:
        drawn["Looks"] = lambda axis: _looks(axis, monitor)
    return {title: _picture(draw) for title, draw in drawn.items()}


def _picture(draw: Callable[[Any], None]) -> str:
    return f"data:image/png;base64,{base64.b64encode(as_png(draw)).decode()}"


def _lengths(axis: Any, drift: Drift) -> None:
    lengths = np.maximum(drift.features.lengths, 1)
    sides = [(lengths[drift.num_current :], REFERENCE, "reference"), (lengths[: drift.num_current], CURRENT, "current")]
    for side, color, label in sides:
        axis.step(np.sort(side), np.arange(1, len(side) + 1) / len(side), color=color, linewidth=1.6, label=label, where="post")
    axis.set_xscale("log")
    dress(axis, "share of texts that are no longer than so many characters")
    axis.legend(frameon=False)


def _languages(axis: Any, drift: Drift) -> None:
    shown = list(drift.languages.items())[:_LANGUAGES_SHOWN]
    places = np.arange(len(shown))
    axis.bar(places - 0.2, [shares[1] for _, shares in shown], 0.38, color=REFERENCE, alpha=0.7, label="reference")
    axis.bar(places + 0.2, [shares[0] for _, shares in shown], 0.38, color=CURRENT, alpha=0.7, label="current")
    axis.set_xticks(places, [name for name, _ in shown])
    dress(axis, "share of each language (und: code, or too short to tell)")
    axis.legend(frameon=False)


def _scores(axis: Any, drift: Drift) -> None:
    scores = drift.tested.scores
    low, high = np.quantile(scores, [0.002, 0.998])
    bins = np.linspace(low, high, 41)
    for side, color, label in (
        (scores[drift.num_current :], REFERENCE, "reference"),
        (scores[: drift.num_current], CURRENT, "current"),
    ):
        weights = np.full(len(side), 1 / len(side))
        axis.hist(side, bins, weights=weights, color=color, alpha=0.5, label=label)
    axis.axvline(0, color=MUTED, linewidth=1, linestyle="--")
    dress(axis, "scores of a classifier that has not seen the text: to the right, like the current ones")
    axis.set_yticks([])
    axis.legend(frameon=False)


def _power(axis: Any, drift: Drift) -> None:
    made = drift.calibration
    assert made is not None
    shares = [0.0, *made.power]
    found = [made.false_alarms, *made.power.values()]
    low, high = zip(*(one.interval for one in found), strict=True)
    axis.fill_between(shares, low, high, color=TRAIN, alpha=0.15, linewidth=0)
    axis.plot(shares, [one.value for one in found], "o-", color=TRAIN, markersize=4)
    axis.axhline(drift.alpha, color=EVENT, linewidth=1, linestyle="--")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("share of drift that was planted")
    dress(axis, f"how often it is found, {made.texts} texts a side (at 0: false alarms)")


def _looks(axis: Any, monitor: Monitor) -> None:
    numbers = [look.number for look in monitor.looks]
    axis.plot(numbers, [look.p for look in monitor.looks], "o", color=TRAIN, markersize=4, label="p of the look")
    axis.step(numbers, [look.level for look in monitor.looks], color=EVENT, linewidth=1, where="mid", label="level")
    axis.set_yscale("log")
    axis.set_xlabel("look")
    dress(axis, f"looks that share a rate of {monitor.alpha:.0%}")
    axis.legend(frameon=False)
