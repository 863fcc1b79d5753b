"""What a comparison leaves for people and programs: drift.html, drift.json."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.cluster.run.files import write_atomically, write_json
from ropewalk.jobs.results.compare import Comparison
from ropewalk.jobs.runs.show.html import Table, page, paragraph, picture
from ropewalk.jobs.runs.show.plots import EVENT, MUTED, TRAIN, VALIDATION, as_png, dress
from ropewalk.jobs.serving.drift.detect import Drift
from ropewalk.jobs.serving.drift.monitor import Monitor

CURRENT, REFERENCE = VALIDATION, TRAIN
_LANGUAGES_SHOWN = 12
PAGE, DATA = "drift.html", "drift.json"
_LONGEST = 400  # characters of a text that are shown
_MANY = 0.05  # of all texts; one that is repeated more often is told of
_TOLD = {"length": "length", "language": "language", "embedding": "embedding (MMD)", "classifier": "classifier"}


def write_report(drift: Drift, folder: Path, *, probes: Comparison | None = None, monitor: Monitor | None = None) -> Path:
    """Write both files into a folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {**drift.plain(), "probes": probes.plain() if probes else None}
    if monitor is not None:
        found["monitor"] = monitor.plain()
    write_json(folder / DATA, found)
    sections = [paragraph(drift.words), *notes(drift), _tests(drift), *_quality(drift, probes)]
    sections += [picture(title, url) for title, url in draw_drift(drift, monitor).items()]
    sections += [_unlike(drift)]
    write_atomically(folder / PAGE, page(f"{drift.current.name} against {drift.reference.name}", sections))
    return folder / PAGE


def notes(drift: Drift) -> list[str]:
    """What a reader should know of the samples, each as a paragraph."""
    found = []
    for side, compared in ((drift.current, drift.num_current), (drift.reference, drift.num_reference)):
        words = f"{side.name}: {compared:,} of {side.total:,} texts were compared"
        if side.skipped:
            words += f"; {side.skipped:,} records without a text were left out"
        text, times = side.most_repeated
        if times > max(1, _MANY * len(side.texts)):
            words += f"; {times / len(side.texts):.0%} are one text, {text[:80]!r}, where the tests take texts for independent"
        found.append(paragraph(f"{words}."))
    return found


def test_rows(drift: Drift) -> list[tuple[str, ...]]:
    """A row a test: its name, what it saw, p-value, corrected p-value, arrangements."""
    seen = effects(drift)
    rows: list[tuple[str, ...]] = []
    for name, one in drift.tested.found.items():
        rows.append((_TOLD[name], seen[name], f"{one.p:.3g}", f"{drift.tested.adjusted[name]:.3g}", f"{one.arrangements:,}"))
    return rows


def effects(drift: Drift) -> dict[str, str]:
    """What each test saw, in words."""
    now, before = drift.median_lengths
    language, (share, other) = max(drift.languages.items(), key=lambda one: abs(one[1][0] - one[1][1]))
    return {
        "length": f"median of {now:,.0f} characters, was {before:,.0f}",
        "language": f"{language} {share:.1%}, was {other:.1%}",
        "embedding": f"squared distance of the means {drift.tested.found['embedding'].observed:.3g}",
        "classifier": f"area under the curve {drift.tested.found['classifier'].observed:.3f}, where 0.5 is chance",
    }


def _tests(drift: Drift) -> str:
    table = Table("Tests", ("test", "what it sees", ">p", ">p, corrected", ">arrangements"))
    for row in test_rows(drift):
        table.row(*row)
    return table.html()


def _quality(drift: Drift, probes: Comparison | None) -> list[str]:
    table = Table("Quality", ("by", ">current", ">reference", ">difference", ">95% interval", ">p", ">n", "shown to be"))
    if (one := drift.ratings) is not None:
        interval = f"{one.interval[0]:+.1%} to {one.interval[1]:+.1%}"
        cells = (f"{one.current:.1%}", f"{one.reference:.1%}", f"{one.difference:+.1%}", interval, f"{one.p_value:.3g}")
        table.row("good ratings", *cells, f"{one.n[0]} and {one.n[1]}", "worse" if one.worse else "")
    if probes is not None:
        interval = "" if probes.interval is None else f"{probes.interval[0]:+.4g} to {probes.interval[1]:+.4g}"
        p = "" if probes.p_value is None else f"{probes.p_value:.3g}"
        shown = {"first": "better", "second": "worse", None: ""}[probes.better]
        table.row("probe set", "", "", f"{probes.difference:+.4g}", interval, p, str(probes.n), shown)
    return [table.html()] if table.rows else []


def _unlike(drift: Drift) -> str:
    table = Table("Current texts that look least like the reference", ("text",))
    for text in drift.unlike:
        table.row(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
    return table.html()


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
