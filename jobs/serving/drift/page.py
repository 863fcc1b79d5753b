"""What a comparison leaves for people and programs: drift.html, drift.json."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.run.files import write_atomically, write_json
from ropewalk.jobs.results.compare import Comparison
from ropewalk.jobs.runs.show.html import Table, page, paragraph, picture
from ropewalk.jobs.serving.drift.detect import Drift
from ropewalk.jobs.serving.drift.monitor import Monitor
from ropewalk.jobs.serving.drift.plots import draw_drift

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
