"""Tables of many runs: one that leaves columns out where they do not fit, and one that is printed quickly."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# the least needed first; an id and a state are never left out, cut or folded
SPARED = ("CLUSTER", "NODES", "ATTEMPT", "AGE", "LOSS", "JOB", "REASON", "PROGRESS")
FOLDED = {"REASON": 20}  # cells, to which a column may shrink
BETWEEN, EDGES = 3, 2  # cells that the look of a table takes


class FittedTable:
    """A table whose first and third column are whole on one line; others are folded or left out as the width demands."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
        """`styles` has a style per row, which its third column is printed in. `>` before a name aligns to the right."""
        self.columns, self.rows, self.styles = columns, rows, styles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = self.fitting(options.max_width)
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for place in kept:
            name = self.columns[place]
            justify = "right" if name.startswith(">") else "left"
            made.add_column(name.lstrip(">"), justify=justify, overflow="fold", no_wrap=name.lstrip(">") not in FOLDED)  # type: ignore[arg-type]
        for row, style in zip(self.rows, self.styles, strict=True):
            made.add_row(*(Text(row[place], style=style if place == 2 else "") for place in kept))
        wide = options.update(width=max(options.max_width, self._width(kept)))  # else ids are cut; a terminal wraps the line
        yield from console.render(made, wide)

    def fitting(self, width: int) -> list[int]:
        """The places of the columns that fit."""
        kept = list(range(len(self.columns)))
        for spared in SPARED:
            if self._width(kept) <= width:
                break
            kept = [place for place in kept if self.columns[place].lstrip(">") != spared]
        return kept

    def _width(self, kept: Sequence[int]) -> int:
        return sum(self._width_of(place) for place in kept) + BETWEEN * (len(kept) - 1) + EDGES

    def _width_of(self, place: int) -> int:
        name = self.columns[place].lstrip(">")
        return min(max(cell_len(cell) for cell in (name, *(row[place] for row in self.rows))), FOLDED.get(name, 1_000))


class LongTable:
    """Prints one line per row, cut and never folded, for grep and less: a Table takes a second for a thousand rows."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
        """`styles` has a style per row, which its third column is printed in."""
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
