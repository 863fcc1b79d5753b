"""Terminal output of `ropewalk feedback`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from ropewalk.cluster.text import counted
from ropewalk.jobs.runs.show.tables import table
from ropewalk.jobs.serving.feedback.summary import Line, Share, Summary


def lines_of(run: str, summary: Summary, written: Mapping[str, Any] | None, deleted: int) -> Iterator[RenderableType]:
    """Yield what `ropewalk feedback` prints."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in summary.outcomes.items())
    yield Text(f"{run}: {counted(summary.answers, 'answer')}{f' ({outcomes})' if outcomes else ''}")
    if not summary.captured and not summary.ratings:
        yield Text("No content is captured; `ropewalk submit serve capture={share: 1.0}` switches capture on.", style="dim")
    else:
        yield Text(f"{counted(summary.captured, 'exchange')} captured, {counted(summary.ratings, 'rating')}")
    if summary.dropped:
        reason = "the disk was full, or the writer too slow"
        yield Text(f"{counted(summary.dropped, 'exchange')} recorded without content: {reason}", style="yellow")
    if summary.answers:
        yield _table("VERSION", summary.versions)
        yield _table("TIME (UTC)", summary.times)
    if deleted:
        yield Text(f"{counted(deleted, 'record')} older than the run's capture.retention_days deleted", style="dim")
    if written:
        reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in written["left_out"].items())
        yield Text(f"{counted(written['records'], 'record')} → {written['file']}{f'; left out: {reasons}' if reasons else ''}")


def _table(name: str, lines: Sequence[Line]) -> RenderableType:
    rows = table(name, ">ANSWERS", ">FAILED", ">CAPTURED", ">RATED", ">GOOD", ">95% INTERVAL", ">CORRECTED")
    for line in lines:
        numbers = (line.answers, line.failed, line.captured, line.rated.n)
        rows.add_row(line.name, *map(str, numbers), *_share(line.rated), str(line.corrections))
    return rows


def _share(rated: Share) -> tuple[str, str]:
    if rated.value is None or rated.low is None or rated.high is None:
        return "-", "-"
    return f"{rated.value:.1%}", f"{rated.low:.1%} .. {rated.high:.1%}"
