"""Sections of the HTML page of an audit."""

from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.cluster.page import Table, image, paragraph
from ropewalk.jobs.runs.show.run_page import gate_sections
from ropewalk.jobs.runs.show.tables import number

ROWS_SHOWN = 60
_CAUTION = "A low score does not prove that a model has no bias: the suites cover few groups."


def sections(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> list[str]:
    """Return the sections of an audit: gate, scores, pictures (PNG), tables, and notes."""
    scores = [
        {"score": score, "value": entry["value"], "± SE": entry["standard_error"], "n": entry["n"]}
        for score, entry in report["scores"].items()
    ]
    images = "".join(image(title, png) for title, png in pictures.items())
    return [
        *gate_sections(report["gate"]),
        table("Scores", scores),
        f'<div class="row">{images}</div>\n',
        *(table(title, rows) for title, rows in report["tables"].items()),
        *(paragraph(note, "note") for note in (*report["notes"], _CAUTION)),
    ]


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table; of a long one the first rows, and the number of all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name: all(_is_number(row[name]) for row in rows if row.get(name) is not None) for name in names}
    note = f"the first {ROWS_SHOWN} of {len(rows):,} rows; report.json has all" if len(rows) > ROWS_SHOWN else ""
    shown = Table(title, [f">{name}" if numeric[name] else name for name in names], note if rows else "none")
    for row in rows[:ROWS_SHOWN]:
        # numbers and mappings are shortened, texts are not: they are the evidence
        shown.row(*(value if isinstance(value := row.get(name), str) else number(value) for name in names))
    return shown.html()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
