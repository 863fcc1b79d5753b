"""The view of an evaluation: its scores as a table, and the result of its gate."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType

_OWN_TABLE = ("scores", "gate", "generations", "truncated", "token_calibration")


class EvaluateView(RunView):
    """The common view of a run, with scores by task and metric."""

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """Return held-out figures, task scores, the gate, and the path of the report."""
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.runs.show.tables import values_table

        parts: list[Any] = [values_table({key: value for key, value in result.items() if key not in _OWN_TABLE}, "succeeded")]
        if result.get("scores"):
            parts.append(scores_table(result["scores"]))
        parts += generation_lines(result.get("generations") or [])
        if "gate" in result:
            parts.append(Text("The gate: passed." if result["gate"]["passed"] else "The gate: refused."))
        return Group(*parts)

    def result_words(self) -> str:
        """Return the loss, and the first metric of the first task."""
        results = self.run.results()
        figures = {"loss": results.get("loss")}
        for task, metrics in list((results.get("scores") or {}).items())[:1]:
            figures[task] = next(iter(metrics.values()))["value"]
        return ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)

    def outputs(self) -> list[str]:
        return [str(self.run.path / "evaluation/report.html")]

    def next_commands(self) -> list[tuple[str, str]]:
        return [
            (f"ropewalk compare {self.run.id} OTHER", "compare with another evaluation, item by item"),
            (f"ropewalk promote {self.run.record['config']['model']} --to candidate", "register the model"),
        ]

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        """Return the page of the run with its scores."""
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import run_page

        results = details.get("results") or {}
        rest = {key: value for key, value in results.items() if key not in _OWN_TABLE}
        parts: list[Any] = [run_page({**details, "results": rest})]
        if results.get("scores"):
            parts.append(scores_table(results["scores"]))
        return Group(*parts, *generation_lines(results.get("generations") or []))


def generation_lines(generations: Sequence[Mapping[str, str]]) -> list["RenderableType"]:
    """Return a heading, and a line for each prompt with the text that the model generated."""
    from rich.text import Text

    from ropewalk.jobs.runs.show.tables import shorten

    lines = [Text.assemble((f"  {each['prompt']}", "bold"), f" {shorten(each['text'], 160)}") for each in generations]
    return [Text("generations", style="bold"), *lines] if lines else []


def scores_table(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> "RenderableType":
    """Return a table with a row for each metric of each task."""
    from ropewalk.jobs.runs.show.tables import table

    rows = table("TASK", "METRIC", ">VALUE", ">± SE", ">N", title="scores")
    for task, metrics in scores.items():
        for metric, score in metrics.items():
            value, error = (("" if score[key] is None else f"{score[key]:.4f}") for key in ("value", "standard_error"))
            rows.add_row(task, metric, value, error, str(score["n"]))
    return rows
