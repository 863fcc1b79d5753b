"""Report of a comparison: drift.html for people, drift.json for programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.cluster.page import Link, Table, date_words, page, paragraph, picture
from ropewalk.cluster.run.files import json_text, write_atomically
from ropewalk.jobs.results.compare import Comparison
from ropewalk.jobs.runs.show.plots import EVENT, MUTED, TRAIN, VALIDATION, as_png, dress
from ropewalk.jobs.serving.drift.detect import Drift
from ropewalk.jobs.serving.drift.monitor import Monitor

CURRENT, REFERENCE = VALIDATION, TRAIN
_LANGUAGES_SHOWN = 12
PAGE, DATA = "drift.html", "drift.json"
_MAX_CHARS = 400  # of a text; the rest is not shown
_REPEATED_SHARE = 0.05  # a text that makes up more of the sample is reported
_TITLES = {"length": "length", "language": "language", "embedding": "embedding (MMD)", "classifier": "classifier"}


def write_report(drift: Drift, folder: Path, *, probes: Comparison | None = None, monitor: Monitor | None = None) -> Path:
    """Write both files, with texts of users, so that only this user can read them; return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {**drift.plain(), "probes": probes.plain() if probes else None}
    if monitor is not None:
        results["monitor"] = monitor.plain()
    write_atomically(folder / DATA, json_text(results), mode=0o600)
    sections = [
        paragraph(drift.summary, "bad" if drift.alarm else "good"),
        *notes(drift),
        _tests(drift),
        *_quality(drift, probes),
    ]
    sections += [picture(title, png) for title, png in draw_drift(drift, monitor).items()]
    sections += [_unlike(drift)]
    subject = f"{drift.current.name} against {drift.reference.name}"
    facts: dict[str, object] = {"current": drift.current.name, "reference": drift.reference.name, "written": date_words()}
    facts |= {"texts a side, at most": drift.config.texts, "alpha": drift.config.alpha, "rounds": drift.config.rounds}
    facts |= {"embedding": drift.config.embedding or "hashed n-grams", "seed": drift.config.seed}
    write_atomically(folder / PAGE, page("Drift", subject, sections, facts=facts, links=[Link(DATA, DATA)]), mode=0o600)
    return folder / PAGE


def notes(drift: Drift) -> list[str]:
    """Remarks on the samples, one paragraph each."""
    paragraphs = []
    for side, compared in ((drift.current, drift.num_current), (drift.reference, drift.num_reference)):
        note = f"{side.name}: {compared:,} of {side.total:,} texts were compared"
        if side.skipped:
            note += f"; {side.skipped:,} records without text were skipped"
        text, count = side.most_repeated
        if count > max(1, _REPEATED_SHARE * len(side.texts)):
            note += f"; {count / len(side.texts):.0%} are copies of one text, {text[:80]!r}; the tests assume independent texts"
        paragraphs.append(paragraph(f"{note}."))
    return paragraphs


def test_rows(drift: Drift) -> list[tuple[str, ...]]:
    """One table row per test: name, effect, p-value, corrected p-value, permutations."""
    effect_of = effects(drift)
    rows: list[tuple[str, ...]] = []
    for name, result in drift.tests.results.items():
        rows.append(
            (_TITLES[name], effect_of[name], f"{result.p:.3g}", f"{drift.tests.adjusted[name]:.3g}", f"{result.permutations:,}")
        )
    return rows


def effects(drift: Drift) -> dict[str, str]:
    """Size of the effect that each test measured, for people."""
    current, reference = drift.median_lengths
    language, (share, reference_share) = max(drift.languages.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    return {
        "length": f"median of {current:,.0f} characters, was {reference:,.0f}",
        "language": f"{language} {share:.1%}, was {reference_share:.1%}",
        "embedding": f"squared distance of the means {drift.tests.results['embedding'].observed:.3g}",
        "classifier": f"area under the curve {drift.tests.results['classifier'].observed:.3f} (0.5 is chance)",
    }


def _tests(drift: Drift) -> str:
    table = Table("Tests", ("test", "effect", ">p", ">p, corrected", ">permutations"))
    for row in test_rows(drift):
        table.row(*row)
    return table.html()


def _quality(drift: Drift, probes: Comparison | None) -> list[str]:
    table = Table("Quality", ("by", ">current", ">reference", ">difference", ">95% interval", ">p", ">n", "verdict"))
    if (ratings := drift.ratings) is not None:
        interval = f"{ratings.interval[0]:+.1%} to {ratings.interval[1]:+.1%}"
        cells = (
            f"{ratings.current:.1%}",
            f"{ratings.reference:.1%}",
            f"{ratings.difference:+.1%}",
            interval,
            f"{ratings.p_value:.3g}",
        )
        table.row("good ratings", *cells, f"{ratings.n[0]} and {ratings.n[1]}", "worse" if ratings.worse else "")
    if probes is not None:
        interval = "" if probes.interval is None else f"{probes.interval[0]:+.4g} to {probes.interval[1]:+.4g}"
        p = "" if probes.p_value is None else f"{probes.p_value:.3g}"
        verdict = {"first": "better", "second": "worse", None: ""}[probes.better]
        table.row("probe set", "", "", f"{probes.difference:+.4g}", interval, p, str(probes.n), verdict)
    return [table.html()] if table.rows else []


def _unlike(drift: Drift) -> str:
    table = Table("Current texts least similar to the reference", ("text",))
    for text in drift.unlike:
        table.row(text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}…")
    return table.html()


def draw_drift(drift: Drift, monitor: Monitor | None = None) -> dict[str, bytes]:
    """Return the plots by title, as PNG."""
    plots: dict[str, Callable[[Any], None]] = {
        "Lengths": lambda axis: _lengths(axis, drift),
        "Languages": lambda axis: _languages(axis, drift),
        "Classifier": lambda axis: _scores(axis, drift),
    }
    if drift.calibration is not None and drift.calibration.power:
        plots["Detection power"] = lambda axis: _power(axis, drift)
    if monitor is not None and monitor.looks:
        plots["Monitoring"] = lambda axis: _looks(axis, monitor)
    return {title: as_png(draw) for title, draw in plots.items()}


def _lengths(axis: Any, drift: Drift) -> None:
    lengths = np.maximum(drift.features.lengths, 1)
    sides = [(lengths[drift.num_current :], REFERENCE, "reference"), (lengths[: drift.num_current], CURRENT, "current")]
    for side, color, label in sides:
        axis.step(np.sort(side), np.arange(1, len(side) + 1) / len(side), color=color, linewidth=1.6, label=label, where="post")
    axis.set_xscale("log")
    _plain_ticks(axis.xaxis)
    dress(axis, "cumulative share of texts by number of characters")
    _legend_below(axis)


def _languages(axis: Any, drift: Drift) -> None:
    shown = list(drift.languages.items())[:_LANGUAGES_SHOWN]
    positions = np.arange(len(shown))
    axis.bar(positions - 0.2, [shares[1] for _, shares in shown], 0.38, color=REFERENCE, alpha=0.7, label="reference")
    axis.bar(positions + 0.2, [shares[0] for _, shares in shown], 0.38, color=CURRENT, alpha=0.7, label="current")
    axis.set_xticks(positions, [name for name, _ in shown])
    dress(axis, "share of each language (und: code, or too short to identify)")
    _legend_below(axis)


def _scores(axis: Any, drift: Drift) -> None:
    scores = drift.tests.scores
    low, high = np.quantile(scores, [0.002, 0.998])
    bins = np.linspace(low, high, 41)
    for side, color, label in (
        (scores[drift.num_current :], REFERENCE, "reference"),
        (scores[: drift.num_current], CURRENT, "current"),
    ):
        weights = np.full(len(side), 1 / len(side))
        axis.hist(side, bins, weights=weights, color=color, alpha=0.5, label=label)
    axis.axvline(0, color=MUTED, linewidth=1, linestyle="--")
    dress(axis, "scores of a classifier on unseen texts; higher: more like the current texts")
    axis.set_yticks([])
    _legend_below(axis)


def _power(axis: Any, drift: Drift) -> None:
    calibration = drift.calibration
    assert calibration is not None
    shares = [0.0, *calibration.power]
    rates = [calibration.false_alarms, *calibration.power.values()]
    low, high = zip(*(rate.interval for rate in rates), strict=True)
    axis.fill_between(shares, low, high, color=TRAIN, alpha=0.15, linewidth=0)
    axis.plot(shares, [rate.value for rate in rates], "o-", color=TRAIN, markersize=4)
    axis.axhline(drift.config.alpha, color=EVENT, linewidth=1, linestyle="--")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("planted share of drift")
    dress(axis, f"detection rate, {calibration.texts} texts per side (at 0: false alarms)")


def _looks(axis: Any, monitor: Monitor) -> None:
    numbers = [look.number for look in monitor.looks]
    axis.plot(numbers, [look.p for look in monitor.looks], "o", color=TRAIN, markersize=4, label="p of the look")
    axis.step(numbers, [look.level for look in monitor.looks], color=EVENT, linewidth=1, where="mid", label="level")
    axis.set_yscale("log")
    axis.xaxis.get_major_locator().set_params(integer=True)
    _plain_ticks(axis.yaxis)
    dress(axis, f"p of each look; combined false-alarm rate {monitor.alpha:.0%}")
    _legend_below(axis, 0.2)


def _plain_ticks(scale: Any) -> None:
    """Label a logarithmic scale with plain numbers such as 200 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
    scale.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    scale.set_minor_formatter(NullFormatter())


def _legend_below(axis: Any, distance: float = 0.1) -> None:
    """Put the legend below the axis, where it covers nothing. `distance`: in heights of the axis."""
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -distance), ncols=2)
