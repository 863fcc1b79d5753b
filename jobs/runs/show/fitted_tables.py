"""Tables of many runs: one that drops columns to fit the terminal, and a fast one for long lists."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# columns to drop, least important first; ids and states are never dropped, cut or folded
DROPPED = ("CLUSTER", "NODES", "ATTEMPT", "AGE", "LOSS", "JOB", "REASON", "PROGRESS")
FOLDED = {"REASON": 20}  # minimum width of a folded column, cells
BETWEEN, EDGES = 3, 2  # cells between columns and at the edges


class FittedTable:
    """Table that never wraps its first and third column; other columns are folded or dropped to fit the width."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
        """`styles`: a style per row for its third column. A `>` before a column's name aligns it to the right."""
        self.columns, self.rows, self.styles = columns, rows, styles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indices = self.fitting(options.max_width)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for index in indices:
            name = self.columns[index]
            justify = "right" if name.startswith(">") else "left"
            table.add_column(name.lstrip(">"), justify=justify, overflow="fold", no_wrap=name.lstrip(">") not in FOLDED)  # type: ignore[arg-type]
        for row, style in zip(self.rows, self.styles, strict=True):
            table.add_row(*(Text(row[index], style=style if index == 2 else "") for index in indices))
        wide = options.update(width=max(options.max_width, self._width(indices)))  # rather wrapped by the terminal than cut
        yield from console.render(table, wide)

    def fitting(self, width: int) -> list[int]:
        """Return the indices of the columns that fit into `width` cells."""
        indices = list(range(len(self.columns)))
        for name in DROPPED:
            if self._width(indices) <= width:
                break
            indices = [index for index in indices if self.columns[index].lstrip(">") != name]
        return indices

    def _width(self, indices: Sequence[int]) -> int:
        return sum(self._width_of(index) for index in indices) + BETWEEN * (len(indices) - 1) + EDGES

    def _width_of(self, index: int) -> int:
        name = self.columns[index].lstrip(">")
        return min(max(cell_len(cell) for cell in (name, *(row[index] for row in self.rows))), FOLDED.get(name, 1_000))


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
