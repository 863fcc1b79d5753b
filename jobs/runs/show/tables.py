"""Runs as tables and pages for people."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.text import counted
from ropewalk.jobs.results.metrics import broken_words
from ropewalk.jobs.runs.show.events import tell
from ropewalk.jobs.runs.show.fitted_tables import FittedTable, LongTable

LONG_LIST = 200  # rows
ONE_LINE = 10_000  # cells: a width at which each row of a table is one line, for grep
COLORS = {
    "PENDING": "yellow",
    "RUNNING": "cyan",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "REFUSED": "red",
    "CANCELLED": "magenta",
    "PREEMPTED": "yellow",
    "REQUEUED": "yellow",
    "UNKNOWN": "bright_black",
}


def console(stderr: bool = False, piped_width: int = 200) -> Console:
    """A console that prints texts as they are, whatever brackets they have; `piped_width` is that where there is no terminal."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=piped_width)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=COLORS.get(state, ""))


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table with the look that all tables share; `>` before a column's name aligns it to the right."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def runs_table(rows: Sequence[Mapping[str, Any]], now: float | None = None) -> RenderableType:
    """What `ps` prints."""
    columns = ("RUN", "JOB", "STATE", "PROGRESS", ">LOSS", ">NODES", ">ATTEMPT", ">AGE", "CLUSTER", "REASON")
    cells = [_run_cells(row, now or time.time()) for row in rows]
    styles = [COLORS.get(row["state"], "") for row in rows]
    if len(rows) > LONG_LIST:
        return LongTable(columns, cells, styles)
    return FittedTable(columns, cells, styles)


def _run_cells(row: Mapping[str, Any], now: float) -> tuple[str, ...]:
    return (
        f"{row.get('line', '')}{row['run']}{f'  {role}' if (role := row.get('role')) else ''}",
        str(row["job"]),
        row["state"],
        progress_words(row),
        "" if row["loss"] is None else f"{row['loss']:.3f}",
        str(row["nodes"] or ""),
        str(row["attempts"]),
        duration(now - row["created"]) if row["created"] else "",
        str(row["cluster"] or ""),
        shorten(row["reason"] or "", 60),
    )


def progress_words(row: Mapping[str, Any]) -> str:
    """`step 120/300` or `tokenize 3/8 shards`, or what the job says in words of its own."""
    progress = row.get("progress")
    if progress and progress.get("words"):
        return f"{progress['stage']} {progress['words']}"
    if row.get("step") is not None:
        return f"step {row['step']}" + (f"/{row['steps']}" if row.get("steps") else "")
    if not progress:
        return ""
    total = f"/{progress['total']:,}" if progress.get("total") is not None else ""
    return f"{progress['stage']} {progress['done']:,}{total} {progress.get('unit') or ''}".strip()


def run_page(found: Mapping[str, Any]) -> RenderableType:
    """What `show` prints."""
    head = table("", "")
    head.show_header = False
    head.add_row("run", Text(found["run"], style="bold"))
    head.add_row("state", state_text(found["state"]))
    if found["reason"]:
        head.add_row("reason", found["reason"])
    head.add_row("job", f"{found['job']} on {found['cluster']}, {counted(found['nodes'], 'node')}")
    code = found["code"] or {}
    if code.get("commit"):
        dirty = " + uncommitted changes (kept in run.yaml)" if code.get("dirty") else ""
        head.add_row("code", f"{code['commit'][:12]} ({code.get('branch')}){dirty}")
    head.add_row("directory", found["directory"])
    if found.get("wandb"):
        head.add_row("W&B", found["wandb"])
    if progress_words(found):
        head.add_row("progress", progress_words(found))
    if broken := broken_words(found.get("broken_lines") or {}):
        head.add_row("broken", broken)
    parts: list[RenderableType] = [head]
    if found["attempt_list"]:
        parts.append(_attempts(found["attempt_list"]))
    if found["results"]:
        parts.append(values_table(found["results"], "results"))
    metrics = {k: v for k, v in found["metrics"].items() if k not in {"step", "attempt", "time"}}
    if metrics:
        parts.append(values_table(metrics, f"metrics, last at step {found['metrics']['step']}"))
    told = [text for event in found["events"] if (text := tell(event))]
    if told:
        parts.append(Text("events", style="bold"))
        parts += [Text(f"  {text}") for text in told[-10:]]
    return Group(*parts)


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> Table:
    made = table(">ATTEMPT", "HANDLE", ">NODES", "STATE", ">EXIT", ">TOOK", "CAUSE", title="attempts")
    for attempt in attempts:
        outcome = attempt["outcome"] or {}
        took = outcome.get("ended", 0) - outcome.get("started", 0) if outcome.get("started") else None
        made.add_row(
            str(attempt.get("attempt", "")),
            str(attempt.get("handle", "")),
            str((attempt.get("resources") or {}).get("nodes", "")),
            state_text(attempt["state"]),
            str(outcome.get("exit_code", "")),
            "" if took is None else duration(took),
            shorten(attempt["cause"], 90),
        )
    return made


def values_table(values: Mapping[str, Any], title: str) -> Table:
    """A table of names and values, one per line."""
    made = table("", ">", title=title)
    made.show_header = False
    for key, value in values.items():
        made.add_row(key, number(value))
    return made


def top_page(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What `top` prints: one line per run, below it one per node."""
    if not rows:
        return Text("no run is live; `ropewalk ps --all` lists the finished ones", style="dim")
    made = table("RUN / NODE", "STATE", "PROGRESS", ">LOSS", ">TOKENS/S", ">CPU %", ">MEMORY GiB", ">GPU %", ">SEEN")
    for row in rows:
        speed = row["metrics"].get("train/tokens_per_second")
        loss = row["loss"]
        made.add_row(
            Text(row["run"], style="bold"),
            state_text(row["state"]),
            progress_words(row),
            "" if loss is None else f"{loss:.3f}",
            "" if speed is None else f"{speed:,.0f}",
        )
        for node in row["node_samples"]:
            gpus = [v for k, v in node.items() if k.startswith("gpu") and k.endswith("_percent")]
            made.add_row(
                f"  node {node['node']}",
                "",
                "",
                "",
                "",
                f"{node['cpu_percent']:.0f}",
                f"{node['memory_used_gib']:.1f}",
                f"{sum(gpus) / len(gpus):.0f}" if gpus else "",
                f"{max(0.0, time.time() - node['time']):.0f} s ago",
            )
    return made


def checks_table(checks: Sequence[Check]) -> Table:
    """What `doctor` prints."""
    made = table("", "CHECK", "FOUND")
    for check in checks:
        made.add_row(Text("ok" if check.ok else "!!", style="green" if check.ok else "bold red"), check.name, check.detail)
    return made


# --- words


def number(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return shorten(str(value), 160)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """`42s`, `3m10s`, `5h02m`, `3d04h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def shorten(text: str, limit: int) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
