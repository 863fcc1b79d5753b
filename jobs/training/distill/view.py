"""Display of a distillation and of its baseline runs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.submission import Dependency
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.view import TokensView

if TYPE_CHECKING:
    from rich.console import RenderableType

_OWN_RESULTS = ("table", "baseline", "teacher_logits")


class DistillView(TokensView):
    """The view of a distillation. The arms of its baseline are its children: runs beside it, for which it waits."""

    def children(self) -> list[RunDir]:
        from ropewalk.jobs.training.distill.baseline import arm_runs, config_of_run

        return list(arm_runs(self.run, config_of_run(self.run)).values())

    def child_words(self, child: RunDir) -> str:
        return str(child.record.get("arm") or "")

    def submit_needed(self, after: Sequence[Dependency]) -> list[RunDir]:
        """Submit the arms that are neither done nor active; the distillation starts after all of them."""
        from ropewalk.jobs.training.distill.baseline import submit_arms

        return submit_arms(self.run, after)

    def explain_child(self, child: RunDir) -> str:
        return f"It is the arm {child.record.get('arm')!r} of {self.run.id}, which compares distillation with cross entropy."

    def ending(self, result: Mapping[str, Any]) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.runs.show.tables import values_table

        parts: list[Any] = [values_table({key: value for key, value in result.items() if key not in _OWN_RESULTS}, "succeeded")]
        if result.get("table"):
            parts.append(variants_table(result["table"]))
        if "baseline" in result:
            parts.append(Text(result["baseline"]["said"]))
        return Group(*parts)

    def outputs(self) -> list[str]:
        return [str(self.run.path / "distill/report.html")]

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        from rich.console import Group

        from ropewalk.jobs.runs.show.tables import run_page

        results = details.get("results") or {}
        parts: list[Any] = [
            run_page({**details, "results": {key: value for key, value in results.items() if key not in _OWN_RESULTS}})
        ]
        if results.get("table"):
            parts.append(variants_table(results["table"]))
        return Group(*parts)


def variants_table(rows: Sequence[Mapping[str, Any]]) -> "RenderableType":
    """Return a table with a row for each variant."""
    from ropewalk.jobs.runs.show.tables import table

    result = table("VARIANT", ">BITS PER BYTE", ">± SE", ">KL", ">PARAMETERS", title="held-out text")
    for row in rows:
        figures = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("bits_per_byte", "standard_error", "kl"))
        result.add_row(row["variant"], *figures, f"{row['parameters']:,}")
    return result
