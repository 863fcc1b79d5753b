"""How a compression is shown: its table, its gate, and where its page lies."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLUMNS = (
    ("bits_per_byte", ">BITS/BYTE", 4, 1.0),
    ("standard_error", ">± SE", 4, 1.0),
    ("more_bits_per_byte", ">MORE", 4, 1.0),
    ("kl", ">KL", 4, 1.0),
    ("bytes", ">MB", 1, 1e-6),
    ("rss", ">MEMORY MB", 1, 1e-6),
    ("first_token_ms", ">FIRST ms", 1, 1.0),
    ("per_token_ms", ">TOKEN ms", 2, 1.0),
)


class CompressView(RunView):
    """The view of a run of `compress`."""

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """A row a variant, what the gate said, and the page."""
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.models.compress.report import tasks_of
        from ropewalk.jobs.results.score import Score
        from ropewalk.jobs.runs.show.tables import table

        rows = result.get("table") or []
        tasks = tasks_of(rows) if rows else {}
        headings = (*(heading for _, heading, _, _ in _COLUMNS), *(f">{task.upper()}" for task in tasks))
        made = table("VARIANT", "ENGINE", *headings, title="variants")
        for row in rows:
            cells = ("" if row.get(key) is None else f"{row[key] * factor:.{digits}f}" for key, _, digits, factor in _COLUMNS)
            scores = (str(Score.of(row["scores"][task][metric])).partition(" (")[0] for task, metric in tasks.items())
            made.add_row(row["variant"], row["engine"], *cells, *scores)
        lines = []
        if (gate := result.get("gate")) is not None:
            told = "the gate: passed" if gate["passed"] else "the gate: refused"
            lines += [
                Text(told, style="green" if gate["passed"] else "red"),
                *(Text(f"  {one['words']}") for one in gate["failed"]),
            ]
        if "report" in result:
            lines.append(Text(f"report: {self.run.path / result['report']}"))
        return Group(made, *lines)

    def explain(self) -> list[str]:
        """Which conditions the gate refused, each with its figure and interval."""
        gate = self.run.results().get("gate") or {}
        return [f"the gate refused: {one['words']}" for one in gate.get("failed") or []]
