"""HTML pages for people, all in one style: self-contained, dark or light as the browser asks, readable on a phone."""

import base64
import time
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple


class Link(NamedTuple):
    """A link to another page or file. `target` is relative to the page."""

    text: str
    target: str


class Table:
    """A table with a heading. A column whose name starts with `>` contains numbers."""

    def __init__(self, heading: str, columns: Sequence[str], note: str = "") -> None:
        self.heading, self.columns, self.note = heading, columns, note
        self.rows: list[tuple[str, ...]] = []

    def row(self, *cells: str) -> None:
        self.rows.append(cells)

    def html(self) -> str:
        """Return the table as HTML, with escaped cells."""
        classes = [' class="right"' if column.startswith(">") else "" for column in self.columns]
        head = "".join(f"<th{c}>{escape(name.lstrip('>'))}</th>" for c, name in zip(classes, self.columns, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{c}>{escape(cell)}</td>" for c, cell in zip(classes, row, strict=True)) + "</tr>\n"
            for row in self.rows
        )
        table = f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
        return f"{heading(self.heading, self.note)}{table}"


@cache
def style() -> str:
    """Return the style sheet of all pages."""
    return Path(__file__).with_suffix(".css").read_text()


def page(
    kind: str, subject: str, sections: Sequence[str], *, facts: Mapping[str, object], links: Sequence[Link] = (), script: str = ""
) -> bytes:
    """Return a page, encoded: its kind (such as `Evaluation`), its subject, facts about it, links, and sections of HTML."""
    shown = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items() if v not in (None, ""))
    anchors = "".join(f'<a href="{escape(link.target)}">{escape(link.text)}</a>' for link in links)
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(subject)} · {escape(kind)}</title><style>
{style()}</style></head><body><main>
<header><p class="kind">{escape(kind)}</p><h1>{escape(subject)}</h1>
<dl class="facts">{shown}</dl>{f"<nav>{anchors}</nav>" if anchors else ""}</header>
{"".join(sections)}</main>{f"<script>{script}</script>" if script else ""}</body></html>
"""
    return text.encode("utf-8", "replace")


def date_words(moment: float | None = None) -> str:
    """Return the local date and time of a moment in seconds since the epoch, by default of now."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def heading(text: str, note: str = "") -> str:
    """Return the heading of a section as HTML."""
    return f"<h2>{escape(text)}{f' <small>{escape(note)}</small>' if note else ''}</h2>\n" if text else ""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text as HTML. `kind`: empty, `note`, `good` or `bad`."""
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>\n"


def picture(title: str, png: bytes, note: str = "") -> str:
    """Return a picture with a heading as HTML; the page contains its bytes."""
    return f"{heading(title, note)}{image(title, png)}"


def image(title: str, png: bytes, *, wide: bool = False) -> str:
    """Return a picture without a heading as HTML; a wide one may need scrolling on a phone."""
    data = base64.b64encode(png).decode()
    return f'<figure{" class=wide" if wide else ""}><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>\n'


def folded(summary: str, text: str, note: str = "") -> str:
    """Return a text that a click on its summary unfolds, as HTML."""
    small = f" <small>{escape(note)}</small>" if note else ""
    return f"<details><summary>{escape(summary)}{small}</summary><pre>{escape(text.rstrip())}</pre></details>\n"


def bars(title: str, rows: Sequence[tuple[str, float]], unit: str, columns: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return a table with a bar per row as HTML; `columns`: further columns after the value, with a cell per row."""
    if not rows:
        return ""
    most = max(value for _, value in rows) or 1
    further = columns or {}
    names = "".join(f'<th class="right">{escape(name)}</th>' for name in (unit, *further))
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="right">{value:,}</td>'
        + "".join(f'<td class="right">{escape(cells[number])}</td>' for cells in further.values())
        + f'<td class="bar"><i style="width: {max(100 * value / most, 0.5):.1f}%"></i></td></tr>\n'
        for number, (name, value) in enumerate(rows)
    )
    head = f'<thead><tr><th></th>{names}<th class="bar"></th></tr></thead>'
    return f'{heading(title)}<div class="scroll"><table class="bars">{head}\n<tbody>{lines}</tbody></table></div>\n'
