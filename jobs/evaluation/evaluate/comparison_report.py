"""The page of a comparison: differences with intervals, and examples on which the models differ."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.page import Table, paragraph
from ropewalk.jobs.runs.models.comparison import MetricComparison, PairedComparison, differing
from ropewalk.jobs.runs.show.run_page import subject_of, write_run_page

COLUMNS = ("task", "metric", ">A", ">B", ">A - B", ">95% interval", ">p", ">smallest", ">n", "better")
_LONGEST = 600  # last characters of a prompt that are shown


def write_comparison(compared: PairedComparison, path: Path) -> Path:
    """Write the page and return its path."""
    first, second = compared.names
    sections = [paragraph(compared.describe(metric)) for metric in compared.metrics]
    sections += [_differences(compared), *_examples(compared)]
    runs = {
        side: ", ".join(dict.fromkeys(pair[at].run.id for pair in compared.pairs)) for at, side in enumerate(("of A", "of B"))
    }
    facts = {"A": first, "B": second, **{f"evaluation {side}": names for side, names in runs.items()}}
    facts["paired by"] = "seed and item" if compared.seeds else "item"
    subject = f"{subject_of(first)} and {subject_of(second)}"
    return write_run_page(compared.pairs[0][0].run, path, "Comparison", sections, subject=subject, facts=facts)


def _differences(compared: PairedComparison) -> str:
    table = Table("Differences", COLUMNS, "smallest: smaller differences are not significant")
    for metric in compared.metrics:
        table.row(metric.task, metric.metric, *row(compared, metric))
    return table.html()


def row(compared: PairedComparison, metric: MetricComparison) -> list[str]:
    """Return the cells of a metric: both sides, the difference, and its statistics."""
    comparison = metric.test
    interval = "" if comparison.interval is None else f"{comparison.interval[0]:.4g} to {comparison.interval[1]:.4g}"
    better = {"first": compared.names[0], "second": compared.names[1], None: "not shown"}[metric.better]
    return [
        f"{metric.first:.4g}",
        f"{metric.second:.4g}",
        "" if comparison.difference is None else f"{comparison.difference:+.4g}",
        interval,
        "" if comparison.p_value is None else f"{comparison.p_value:.3g}",
        "" if comparison.smallest_difference is None else f"{comparison.smallest_difference:.4g}",
        str(comparison.n),
        better,
    ]


def _examples(compared: PairedComparison) -> list[str]:
    table = Table(
        "Items on which they differ", ("task", ">item", "prompt", "answer", f"A: {compared.names[0]}", f"B: {compared.names[1]}")
    )
    for line, other, metric in differing(compared):
        cells = [f"{_answer(each)}\n({metric} {each['values'][metric]:g})" for each in (line, other)]
        table.row(line["task"], str(line["item"]), str(line["prompt"])[-_LONGEST:], _target(line), *cells)
    return [table.html()] if table.rows else []


def _answer(line: dict[str, Any]) -> str:
    """Return the chosen option or the generated text."""
    answers, options = line["answers"], line["options"]
    if answers and isinstance(answers[0], str):
        return str(answers[0])
    if len(options) == len(answers) > 1:
        best = max(range(len(answers)), key=lambda number: answers[number][0])
        return str(options[best])
    return ""


def _target(line: dict[str, Any]) -> str:
    target, options = line["target"], line["options"]
    return str(options[target]) if isinstance(target, int) and target < len(options) > 1 else str(target)
