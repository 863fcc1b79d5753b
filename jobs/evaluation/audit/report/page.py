"""The HTML page of an audit: self-contained, without network access."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

ROWS_SHOWN = 60
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 2.5rem auto; max-width: 72rem }
body { padding: 0 1.5rem }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
.muted { color: #7b8794 }
.passed { color: #2f855a }
.failed { color: #c53030 }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem }
.plots img { max-width: 100%; height: auto }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th { color: #7b8794; text-align: left; font-weight: 500 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e7eb }
.n { text-align: right }
"""


def page(name: str, report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the page of an audit: gate, scores, pictures (PNG), tables, and notes."""
    step = f", step {report['step']}" if report["step"] is not None else ""
    scores = [
        {"score": score, "value": entry["value"], "standard error": entry["standard_error"], "n": entry["n"]}
        for score, entry in report["scores"].items()
    ]
    images = "".join(_picture(title, png) for title, png in pictures.items())
    tables = "".join(f"<h2>{html.escape(title)}</h2>{table(rows)}" for title, rows in report["tables"].items())
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report["notes"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(name)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(name)}</h1><p class="muted">audit of {html.escape(str(report["model"]))}{step}, seed {report["seed"]}</p>
{_gate(report["gate"])}
<h2>Scores</h2>{table(scores)}
<div class="plots">{images}</div>
{tables}
<h2>Notes</h2><ul>{notes}<li>A low score does not prove that a model has no bias: the suites cover few groups.</li></ul>
</body></html>
"""


def _picture(title: str, png: bytes) -> str:
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _gate(gate: Mapping[str, Any]) -> str:
    if gate["passed"]:
        return '<h2 class="passed">The gate: passed</h2>'
    failed = "".join(f"<li>{html.escape(condition['words'])}</li>" for condition in gate["failed"])
    return f'<h2 class="failed">The gate: refused</h2><ul>{failed}</ul>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table; of a long one the first rows and the number of the others."""
    if not rows:
        return '<p class="muted">none</p>'
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(cell(row.get(name)) for name in names)}</tr>" for row in rows[:ROWS_SHOWN])
    more = f'<p class="muted">and {len(rows) - ROWS_SHOWN} more in report.json</p>' if len(rows) > ROWS_SHOWN else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}'


def cell(value: Any) -> str:
    """Return a value as a table cell; numbers are rounded and right-aligned."""
    if isinstance(value, bool) or value is None or not isinstance(value, (int, float)):
        return f"<td>{html.escape('' if value is None else str(value))}</td>"
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:.4g}</td>'
