"""Pages of `profile` and `memory`."""

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.text import format_bytes
from ropewalk.jobs.runs.inspect.ask import Answers
from ropewalk.jobs.runs.inspect.traces import Profile
from ropewalk.jobs.runs.show.tables import table

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 15
MOST_RANKS = 16  # with a column each


def profile_page(profile: Profile) -> "RenderableType":
    """Render what took the time of the profiled steps."""
    from rich.console import Group
    from rich.text import Text

    lengths = profile.step_milliseconds
    slowest = max(lengths, key=lambda rank: lengths[rank])
    steps = next(iter(profile.steps.values()))
    mean = statistics.fmean(lengths.values())
    head = f"steps {steps[0]} to {steps[-1]}: {mean:.1f} ms a step; slowest: rank {slowest} with {lengths[slowest]:.1f} ms"
    rows = table("WHAT", "ON", ">MS A STEP", ">SHARE", ">CALLS", ">SLOWEST RANK")
    for row in profile.rows[:MOST_ROWS]:
        where, calls = "GPU" if row.device else "CPU", f"{row.calls:.1f}"
        slow = f"{row.slowest_rank}: {row.slowest_milliseconds:.1f}"
        rows.add_row(row.name, where, f"{row.milliseconds:.2f}", f"{row.share:.1%}", calls, slow)
    return Group(Text(head), rows)


def memory_page(answers: Mapping[int, Mapping[str, Any]]) -> "RenderableType":
    """Render the memory of ranks by kind; of many ranks minimum, mean and maximum."""
    ranks = sorted(answers)
    few = len(ranks) <= MOST_RANKS
    heads = [f">RANK {rank}" for rank in ranks] if few else [">LEAST", ">MEAN", ">MOST"]
    rows = table("KIND", *heads, title=f"memory at step {answers[ranks[0]]['step']}")

    def cells(values: list[int]) -> list[str]:
        return [format_bytes(value) for value in (values if few else [min(values), round(statistics.fmean(values)), max(values)])]

    for kind in answers[ranks[0]]["kinds"]:
        rows.add_row(kind, *cells([answers[rank]["kinds"].get(kind, 0) for rank in ranks]))
    rows.add_row("all", *cells([answers[rank]["total"] for rank in ranks]))
    for name in answers[ranks[0]].get("peak", {}):
        rows.add_row(f"{name} at the peak", *cells([answers[rank]["peak"][name] for rank in ranks]))
    return rows


def missing_words(answers: Answers, who: str) -> str:
    """Return a warning about nodes or ranks that did not answer; empty if all did."""
    if not answers.missing:
        return ""
    return f"{who} {', '.join(map(str, answers.missing))} did not answer: {answers.reason}"
