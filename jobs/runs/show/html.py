"""A page of tables that needs nothing else: no script, no network."""

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
    """A table with a heading; a column whose name begins with `>` holds numbers."""

    def __init__(self, heading: str, columns: Sequence[str]) -> None:
        self.heading, self.columns = heading, columns
        self.rows: list[tuple[str, ...]] = []

    def row(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)

    def html(self) -> str:
        """The table as HTML, whatever its cells hold."""
        classes = [' class="right"' if column.startswith(">") else "" for column in self.columns]
        head = "".join(f"<th{c}>{escape(name.lstrip('>'))}</th>" for c, name in zip(classes, self.columns, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{c}>{escape(cell)}</td>" for c, cell in zip(classes, row, strict=True)) + "</tr>\n"
            for row in self.rows
        )
        return f"<h2>{escape(self.heading)}</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def page(title: str, sections: Sequence[str]) -> bytes:
    """The whole page."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    text = f"<!doctype html>\n<html><head>{head}</head><body>\n<h1>{escape(title)}</h1>\n{''.join(sections)}</body></html>\n"
    return text.encode("utf-8", "replace")


def picture(title: str, url: str) -> str:
    """A picture with a heading; `url` is a data URL, so that the page needs no file beside it."""
    return f'<h2>{escape(title)}</h2>\n<p><img src="{escape(url)}" alt="{escape(title)}" style="max-width: 100%"></p>\n'
