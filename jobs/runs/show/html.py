"""Self-contained HTML pages with tables and pictures, without scripts or network access."""

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0 0 1.5rem }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: left; vertical-align: top; white-space: pre-wrap }
th { border-bottom: 2px solid #888 }
.right { text-align: right; font-variant-numeric: tabular-nums }
"""


class Table:
    """A table with a heading. A column whose name starts with `>` contains numbers."""

    def __init__(self, heading: str, columns: Sequence[str]) -> None:
        self.heading, self.columns = heading, columns
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
        return f"<h2>{escape(self.heading)}</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text as HTML."""
    return f"<p>{escape(text)}</p>\n"


def page(title: str, sections: Sequence[str]) -> bytes:
    """Return the HTML page with these sections, encoded."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    text = f"<!doctype html>\n<html><head>{head}</head><body>\n<h1>{escape(title)}</h1>\n{''.join(sections)}</body></html>\n"
    return text.encode("utf-8", "replace")


def picture(title: str, url: str) -> str:
    """Return a picture with a heading as HTML. `url`: a data URL, so that the page needs no other file."""
    return f'<h2>{escape(title)}</h2>\n<p><img src="{escape(url)}" alt="{escape(title)}" style="max-width: 100%"></p>\n'
