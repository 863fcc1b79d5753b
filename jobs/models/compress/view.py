"""The view of a compression: its table, its gate, and the path of its page."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.runs.show.view import RunView, short_path

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
        """Return a row per variant, the gate, and the page."""
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.models.compress.report import tasks_of
        from ropewalk.jobs.results.score import Score
        from ropewalk.jobs.runs.show.tables import table

        rows = result.get("table") or []
        tasks = tasks_of(rows) if rows else {}
        headings = (*(heading for _, heading, _, _ in _COLUMNS), *(f">{task.upper()}" for task in tasks))
        variants = table("VARIANT", "ENGINE", *headings, title="variants")
        for row in rows:
            cells = ("" if row.get(key) is None else f"{row[key] * factor:.{digits}f}" for key, _, digits, factor in _COLUMNS)
            scores = (str(Score.of(row["scores"][task][metric])).partition(" (")[0] for task, metric in tasks.items())
            variants.add_row(row["variant"], row["engine"], *cells, *scores)
        lines = []
        if (gate := result.get("gate")) is not None:
            verdict = "the gate: passed" if gate["passed"] else "the gate: refused"
            lines += [
                Text(verdict, style="green" if gate["passed"] else "red"),
                *(Text(f"  {condition['words']}") for condition in gate["failed"]),
            ]
        return Group(variants, *lines)

    def outputs(self) -> list[str]:
        results = self.run.results()
        report = [str(self.run.path / results["report"])] if "report" in results else []
        return [*report, str(self.run.path / "variants")]

    def next_commands(self) -> list[tuple[str, str]]:
        variants = short_path(str(self.run.path / "variants"))
        return [(f"ropewalk run serve model={variants}/NAME", "serve a variant")]

    def explain(self) -> list[str]:
        """Return the conditions that the gate refused, with values and intervals."""
        gate = self.run.results().get("gate") or {}
        return [f"the gate refused: {condition['words']}" for condition in gate.get("failed") or []]
