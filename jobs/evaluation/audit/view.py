"""How an audit is shown: its scores with their errors, its gate, and where its page lies."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.jobs.runs.show.view import RunView

if TYPE_CHECKING:
    from rich.console import RenderableType


class AuditView(RunView):
    """The view of a run of `audit`."""

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        """A row a score, what the gate said of it, and the report."""
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.runs.show.tables import table

        made = table("SCORE", ">VALUE", ">± ERROR", ">N", title="audited")
        for name, score in flat(result.get("scores") or {}):
            error = score["standard_error"]
            value = "" if score["value"] is None else f"{score['value']:.4g}"
            made.add_row(name, value, "" if error is None else f"{error:.2g}", f"{score['n']:,}")
        gate = result.get("gate") or {}
        told = "the gate: passed" if gate.get("passed") else "the gate: refused"
        lines = [Text(told, style="green" if gate.get("passed") else "red")]
        lines += [Text(f"  {one['words']}") for one in gate.get("failed") or []]
        lines += [Text(f"{name}: {self.run.path / result[name]}") for name in ("report", "mixture", "pairs") if name in result]
        return Group(made, *lines)

    def explain(self) -> list[str]:
        """Which conditions the gate refused, each with its figure and interval."""
        gate = self.run.results().get("gate") or {}
        return [f"the gate refused: {one['words']}" for one in gate.get("failed") or []]

    def wandb_summary(self) -> dict[str, Any]:
        """Every score, and whether the gate passed."""
        results = self.run.results()
        values = {f"audit/{name}": score["value"] for name, score in flat(results.get("scores") or {})}
        return {**values, **({"audit/gate_passed": results["gate"]["passed"]} if results.get("gate") else {})}


def flat(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, score) of nested scores, such as `crows_pairs/stereotype_rate`."""
    for name, value in scores.items():
        if "standard_error" in value:
            yield f"{prefix}{name}", value
        else:
            yield from flat(value, f"{prefix}{name}/")
