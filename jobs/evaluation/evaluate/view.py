"""How an evaluation is shown: its scores as a table, and what became of its gate."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType

_OWN_TABLE = ("scores", "gate", "generations", "truncated", "token_calibration")


class EvaluateView(RunView):
    """Scores by task and metric, beside what every run shows."""

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """The figures of held-out text, the scores of tasks, the gate, and the report's place."""
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.runs.show.tables import values_table

        parts: list[Any] = [values_table({key: value for key, value in result.items() if key not in _OWN_TABLE}, "succeeded")]
        if result.get("scores"):
            parts.append(scores_table(result["scores"]))
        if "gate" in result:
            parts.append(Text("The gate: passed." if result["gate"]["passed"] else "The gate: refused."))
        parts.append(Text(f"report: {self.run.path / 'evaluation/report.html'}", style="dim", overflow="fold"))
        return Group(*parts)

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        """The run, then its scores."""
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import run_page

        results = details.get("results") or {}
        shown = {key: value for key, value in results.items() if key not in _OWN_TABLE}
        parts: list[Any] = [run_page({**details, "results": shown})]
        if results.get("scores"):
            parts.append(scores_table(results["scores"]))
        return Group(*parts)


def scores_table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> "RenderableType":
    """A row for each metric of each task."""
    from ropewalk.jobs.runs.show.tables import table

    made = table("TASK", "METRIC", ">VALUE", ">± SE", ">N", title="scores")
    for task, metrics in scores.items():
        for metric, score in metrics.items():
            value, error = (("" if score[key] is None else f"{score[key]:.4f}") for key in ("value", "standard_error"))
            made.add_row(task, metric, value, error, str(score["n"]))
    return made
