"""Tables and blocks that fit the terminal without breaking an id, and a fast table for long lists."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

# columns to drop where a table is too wide, least important first; ids, states and figures are never cut or folded
DROPPED = (
    *("CLUSTER", "NODES", "ATTEMPT", "AGE", "NEEDS", "LOSS", "JOB", "ENGINE", "BASE", "REASON", "CAUSE"),
    "PROGRESS",
)
# columns of texts, which are folded between words, and their minimum width in cells
FOLDED = {"PROGRESS": 22, "REASON": 20, "CAUSE": 20, "OUTCOME": 20, "TRIGGER": 16, "RESULT": 20, "PARAMETERS": 20, "MEANING": 20}
BETWEEN, EDGES, WIDEST = 3, 2, 10_000  # cells between columns and at the edges


class FittedTable(Table):
    """Table that drops columns, and folds texts, to fit the width of the terminal; it never breaks an id, a state or a figure."""

    def __init__(self, *columns: str, title: str | None = None, dropped: Sequence[str] = DROPPED) -> None:
        """Make an empty table. `dropped`: columns to drop in this order if it is too wide.

        A `>` before a column's name aligns it to the right.
        """
        styles: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "header_style": "dim"}
        super().__init__(box=box.SIMPLE_HEAD, title=title, pad_edge=False, **styles)
        self.dropped = dropped
        for index, name in enumerate(columns):
            folds = name in FOLDED or (not name.lstrip(">") and index > 0)
            justify: Any = "right" if name.startswith(">") else "left"
            self.add_column(name.lstrip(">"), justify=justify, overflow="fold", no_wrap=not folds)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [self._width(column, console, options) for column in self.columns]
        indices = self._fitting(widths, options.max_width)
        shown = copy(self)
        shown.columns = [replace(self.columns[index], _index=number) for number, index in enumerate(indices)]
        needed = _total([widths[index] for index in indices])
        wide = options.update(width=max(options.max_width, needed))  # rather wrapped by the terminal than cut
        yield from super(FittedTable, shown).__rich_console__(console, wide)

    def _fitting(self, widths: Sequence[int], width: int) -> list[int]:
        """Return the indices of the columns that fit into `width` cells."""
        indices = list(range(len(widths)))
        for name in self.dropped:
            if _total([widths[index] for index in indices]) <= width:
                break
            indices = [index for index in indices if self.columns[index].header != name]
        return indices

    def _width(self, column: Column, console: Console, options: ConsoleOptions) -> int:
        """Return the minimum width of a column in cells."""
        wide = options.update(width=WIDEST)
        cells = [column.header, *column.cells] if self.show_header else list(column.cells)
        width = max((Measurement.get(console, wide, cell).maximum for cell in cells), default=0)
        return width if column.no_wrap else min(width, FOLDED.get(str(column.header), 20))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + BETWEEN * (len(widths) - 1) + EDGES


class LongTable:
    """Table with exactly one line per row, for grep and less; rich's Table takes a second for a thousand rows."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
        """`styles`: a style per row for its third column."""
        self.columns, self.rows, self.styles = columns, rows, styles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [[name.lstrip(">") for name in self.columns], *self.rows]
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        rights = [name.startswith(">") for name in self.columns]
        for line, style in zip(lines, ["dim", *self.styles], strict=True):
            blanks = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
            padded = [b + c if right else c + b for c, b, right in zip(line, blanks, rights, strict=True)]
            yield Segment("  ".join(padded[:2]) + "  ")
            yield Segment(padded[2], console.get_style(style))
            yield Segment("  " + "  ".join(padded[3:]).rstrip() + "\n")


class NextSteps:
    """The block at the end of a run: its files and the commands that follow, in lines that are never broken, to be copied."""

    def __init__(self, files: Sequence[str], commands: Sequence[tuple[str, str]]) -> None:
        """`commands`: each with its meaning."""
        self.files, self.commands = files, commands

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\nnext", style="bold")
        width = max((cell_len(command) for command, _ in self.commands), default=0)
        beside = [f"  {command:<{width}}  {meaning}" for command, meaning in self.commands]
        below = [line for command, meaning in self.commands for line in (f"  {command}", f"      {meaning}")]
        fits = max(map(cell_len, beside), default=0) <= options.max_width
        lines = [*(f"  {file}" for file in self.files), *(beside if fits else below)]
        for line in lines:
            yield Segment(f"{line}\n")
