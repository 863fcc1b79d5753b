"""The view of an audit: scores with errors, the gate, and the path of the page."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType


class AuditView(RunView):
    """The view of a run of `audit`."""

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """Return a row per score, the gate, and the report."""
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.runs.show.tables import table

        rows = table("SCORE", ">VALUE", ">± ERROR", ">N", title="audited")
        for name, score in flat(result.get("scores") or {}):
            error = score["standard_error"]
            value = "" if score["value"] is None else f"{score['value']:.4g}"
            rows.add_row(name, value, "" if error is None else f"{error:.2g}", f"{score['n']:,}")
        gate = result.get("gate") or {}
        verdict = "the gate: passed" if gate.get("passed") else "the gate: refused"
        lines = [Text(verdict, style="green" if gate.get("passed") else "red")]
        lines += [Text(f"  {condition['words']}") for condition in gate.get("failed") or []]
        return Group(rows, *lines)

    def outputs(self) -> list[str]:
        results = self.run.results()
        return [str(self.run.path / results[name]) for name in ("report", "mixture", "pairs") if name in results]

    def next_commands(self) -> list[tuple[str, str]]:
        return [(f"ropewalk promote {self.run.record['config']['model']} --to candidate", "register the model")]

    def explain(self) -> list[str]:
        """Return the conditions that the gate refused, with values and intervals."""
        gate = self.run.results().get("gate") or {}
        return [f"the gate refused: {condition['words']}" for condition in gate.get("failed") or []]

    def wandb_summary(self) -> dict[str, Any]:
        """Return every score, and the result of the gate."""
        results = self.run.results()
        values = {f"audit/{name}": score["value"] for name, score in flat(results.get("scores") or {})}
        return {**values, **({"audit/gate_passed": results["gate"]["passed"]} if results.get("gate") else {})}


def flat(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name, score) of nested scores, such as `crows_pairs/stereotype_rate`."""
    for name, value in scores.items():
        if "standard_error" in value:
            yield f"{prefix}{name}", value
        else:
            yield from flat(value, f"{prefix}{name}/")
