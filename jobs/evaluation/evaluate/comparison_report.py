"""The page of a comparison: differences with their intervals, and examples where the two sides part."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.runs.models.comparison import Compared, MetricComparison, differing
from ropewalk.jobs.runs.show.html import Table, page, paragraph

_LONGEST = 600  # characters of a prompt that are shown; its end decides


def write_comparison(compared: Compared, path: Path) -> Path:
    """Write the page; returns its path."""
    first, second = compared.names
    sections = [paragraph(compared.words(one)) for one in compared.metrics]
    sections += [_differences(compared), *_examples(compared)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(f"{first} and {second}, item by item", sections))
    return path


def _differences(compared: Compared) -> str:
    head = (">first", ">second", ">difference", ">95% interval", ">p", ">smallest that shows", ">n", "better")
    table = Table("Differences", ("task", "metric", *head))
    for one in compared.metrics:
        table.row(one.task, one.metric, *row(compared, one))
    return table.html()


def row(compared: Compared, one: MetricComparison) -> list[str]:
    """The cells of a metric: both sides, the difference, and what it is judged by."""
    found = one.found
    interval = "" if found.interval is None else f"{found.interval[0]:.4g} to {found.interval[1]:.4g}"
    better = {"first": compared.names[0], "second": compared.names[1], None: "not shown"}[one.better]
    return [
        f"{one.first:.4g}",
        f"{one.second:.4g}",
        "" if found.difference is None else f"{found.difference:+.4g}",
        interval,
        "" if found.p_value is None else f"{found.p_value:.3g}",
        "" if found.smallest_difference is None else f"{found.smallest_difference:.4g}",
        str(found.n),
        better,
    ]


def _examples(compared: Compared) -> list[str]:
    table = Table("Where they part", ("task", ">item", "prompt", "answer", compared.names[0], compared.names[1]))
    for line, other, metric in differing(compared):
        cells = [f"{_answer(each)}\n({metric} {each['values'][metric]:g})" for each in (line, other)]
        table.row(line["task"], str(line["item"]), str(line["prompt"])[-_LONGEST:], _target(line), *cells)
    return [table.html()] if table.rows else []


def _answer(line: dict[str, Any]) -> str:
    """What was chosen or written."""
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
