"""Tables and pages of runs for terminals."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.gpus import gpu_percents
from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.cluster.spec import RunState
from ropewalk.cluster.text import counted, format_bytes
from ropewalk.jobs.results.goodput import SECTION
from ropewalk.jobs.results.meanings import meaning_of
from ropewalk.jobs.results.metrics import OWN_KEYS, broken_words
from ropewalk.jobs.runs.show.events import format_event, without_cause
from ropewalk.jobs.runs.show.fitted_tables import DROPPED, FittedTable, LongTable
from ropewalk.jobs.runs.show.stragglers import describe_stragglers

LONG_LIST = 200  # rows
ATTEMPT_DROPPED = ("NODES", "EXIT", "TOOK", "HANDLE")  # of the table of attempts
BAR_WIDTH = 20  # cells of a bar of all
ONE_LINE = 10_000  # cells: a width at which no row of a table wraps, for grep
_HASH = re.compile(r"[0-9a-f]{40,}")
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
    """Return a console without markup and highlighting. `piped_width`: its width without a terminal."""
    terminal = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return (
        terminal
        if terminal.is_terminal
        else Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=piped_width)
    )


def state_text(state: str) -> Text:
    """Return a state in its colour."""
    return Text(state, style=COLORS.get(state, ""))


def table(*columns: str, title: str | None = None, dropped: Sequence[str] = DROPPED) -> FittedTable:
    """Return an empty table in the common style. A `>` before a column's name aligns it to the right."""
    return FittedTable(*columns, title=title, dropped=dropped)


COLUMNS = ("RUN", "JOB", "STATE", "PROGRESS", ">LOSS", ">NODES", ">ATTEMPT", ">AGE", "CLUSTER", "REASON", ">GOODPUT")  # of `ps`
PLAIN_COLUMNS = COLUMNS[:-1]


def column_named(name: str) -> str:
    """Return a column of `ps` by its name in any case. Raises ConfigError."""
    by_name = {column.lstrip(">").lower(): column for column in COLUMNS}
    if name.strip().lower() not in by_name:
        raise ConfigError(f"--columns: unknown column {name!r}; columns: {', '.join(by_name)}")
    return by_name[name.strip().lower()]


def runs_table(
    rows: Sequence[Mapping[str, Any]], now: float | None = None, columns: Sequence[str] = PLAIN_COLUMNS
) -> RenderableType:
    """Render the output of `ps` with some of COLUMNS."""
    indices = [COLUMNS.index(column) for column in columns]
    all_cells = [_run_cells(row, now or time.time()) for row in rows]
    cells = [tuple(row[index] for index in indices) for row in all_cells]
    styles = [COLORS.get(row["state"], "") for row in rows]
    if len(rows) > LONG_LIST:
        return LongTable(columns, cells, styles)
    fitted = table(*columns)
    for row, style in zip(cells, styles, strict=True):
        fitted.add_row(*(Text(cell, style=style if name == "STATE" else "") for name, cell in zip(columns, row, strict=True)))
    return fitted


def _run_cells(row: Mapping[str, Any], now: float) -> tuple[str, ...]:
    return (
        f"{row.get('line', '')}{row['run']}{f'  {role}' if (role := row.get('role')) else ''}",
        str(row["job"]),
        row["state"],
        row.get("result") or progress_words(row),
        "" if row["loss"] is None else f"{row['loss']:.3f}",
        str(row["nodes"] or ""),
        str(row["attempts"]),
        duration(now - row["created"]) if row["created"] else "",
        str(row["cluster"] or ""),
        shorten(row["reason"] or "", 60),
        "" if row.get("goodput") is None else f"{row['goodput']:.1%}",
    )


def progress_words(row: Mapping[str, Any]) -> str:
    """Describe the progress of a run, such as `step 120/300` or `tokenize 3/8 shards`, or by the job's own text."""
    progress = row.get("progress")
    if progress and progress.get("words"):
        return "" if RunState(row["state"]).final else f"{progress['stage']} {progress['words']}"
    if row.get("step") is not None:
        return f"step {row['step']}" + (f"/{row['steps']}" if row.get("steps") else "")
    if not progress:
        return ""
    total = f"/{progress['total']:,}" if progress.get("total") is not None else ""
    return f"{progress['stage']} {progress['done']:,}{total} {progress.get('unit') or ''}".strip()


def run_page(details: Mapping[str, Any]) -> RenderableType:
    """Render the output of `show`."""
    head = table("", "")
    head.show_header = False
    head.add_row("run", Text(details["run"], style="bold"))
    head.add_row("state", state_text(details["state"]))
    if details["reason"]:
        head.add_row("reason", details["reason"])
    spare = (details["resources"] or {}).get("spare_nodes")
    nodes = counted(details["nodes"], "node") + (f" and {counted(spare, 'spare node')}" if spare else "")
    head.add_row("job", f"{details['job']} on {details['cluster']}, {nodes}")
    code = details["code"] or {}
    if code.get("commit"):
        dirty = " + uncommitted changes (kept in code.diff)" if code.get("dirty") else ""
        head.add_row("ropewalk", f"{code['commit'][:12]} ({code.get('branch')}){dirty}")
    if names := (details["config"] or {}).get("secrets"):
        head.add_row("secrets", ", ".join(names))
    head.add_row("directory", details["directory"])
    head.add_row("on disk", format_bytes(details["bytes"]))
    if details.get("wandb"):
        head.add_row("W&B", details["wandb"])
    if details.get("result"):
        head.add_row("result", details["result"])
    elif progress_words(details):
        head.add_row("progress", progress_words(details))
    if broken := broken_words(details.get("broken_lines") or {}):
        head.add_row("broken", broken)
    if details.get("stragglers"):
        head.add_row("slow", describe_stragglers(details["stragglers"]))
    parts: list[RenderableType] = [head]
    if details["attempt_list"]:
        parts.append(_attempts(details["attempt_list"], details["reason"]))
    results = details["results"] or {}
    if results:
        parts.append(values_table(results, "results"))
    if details["goodput"]["seconds"]:
        parts.append(_goodput(details["goodput"]))
    shown = {k: v for k, v in details["metrics"].items() if not k.startswith(SECTION)}  # those are in the table above
    metrics = {k: v for k, v in shown.items() if k not in OWN_KEYS and results.get(k) != v}
    if metrics:
        parts.append(values_table(metrics, f"metrics, last at step {details['metrics']['step']}"))
    lines = [text for event in details["events"] if (text := format_event(event))]
    if lines:
        parts.append(Text("events", style="bold"))
        parts += [Text(f"  {text}") for text in without_cause(lines[-10:], details["reason"])]
    return Group(*parts)


def _attempts(attempts: Sequence[Mapping[str, Any]], reason: str) -> Table:
    """Return a row per attempt; a cause that is the `reason` above is not repeated."""
    causes = ["" if attempt["cause"] == reason else shorten(attempt["cause"], 90) for attempt in attempts]
    columns = (">ATTEMPT", "HANDLE", ">NODES", "STATE", ">EXIT", ">TOOK", *(["CAUSE"] if any(causes) else []))
    rows = table(*columns, title="attempts", dropped=ATTEMPT_DROPPED)
    for attempt, cause in zip(attempts, causes, strict=True):
        outcome = attempt["outcome"] or {}
        seconds = outcome.get("ended", 0) - outcome.get("started", 0) if outcome.get("started") else None
        rows.add_row(
            str(attempt.get("attempt", "")),
            str(attempt.get("handle", "")),
            str((attempt.get("resources") or {}).get("nodes", "")),
            state_text(attempt["state"]),
            str(outcome.get("exit_code", "")),
            "" if seconds is None else duration(seconds),
            *([cause] if any(causes) else []),
        )
    return rows


def _goodput(values: Mapping[str, Any]) -> Table:
    """Return a row per class of time, with a bar of its share, longest first."""
    seconds, share = values["seconds"], values["share"]
    total = sum(seconds.values())
    title = "time" if share is None else f"time, goodput {share:.1%}"
    rows = table("", ">TIME", ">SHARE", "BAR", ">NODE-TIME", title=title, dropped=("BAR", "NODE-TIME"))
    for name, of_class in sorted(seconds.items(), key=lambda item: -item[1]):
        bar = "█" * round(BAR_WIDTH * of_class / total)
        node_time = duration(values["node_seconds"].get(name, 0.0))
        rows.add_row(name.replace("_", " "), duration(of_class), f"{of_class / total:.1%}", bar, node_time)
    if spare := values["node_seconds"].get(TimeClass.SPARE):
        rows.add_row("spare nodes", "", "", "", duration(spare))
    return rows


def values_table(values: Mapping[str, Any], title: str) -> Table:
    """Return a table of names, values and, if there is room, their meanings, one per line."""
    meanings = [meaning_of(key) for key in values]
    explained = any(meanings)
    rows = table("", ">", *(["MEANING"] if explained else []), title=title, dropped=("MEANING",))
    rows.show_header = False
    for (key, value), meaning in zip(values.items(), meanings, strict=True):
        rows.add_row(key, number(value), *([Text(meaning, style="dim")] if explained else []))
    return rows


def top_page(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Render the output of `top`: one line per run, followed by one per node."""
    if not rows:
        return Text("no run is active; `ropewalk ps --all` lists the finished ones", style="dim")
    lines = table("RUN / NODE", "STATE", "PROGRESS", ">LOSS", ">TOKENS/S", ">CPU %", ">MEMORY GiB", ">GPU %", ">SEEN")
    for row in rows:
        speed = row["metrics"].get("train/tokens_per_second")
        loss = row["loss"]
        lines.add_row(
            Text(row["run"], style="bold"),
            state_text(row["state"]),
            progress_words(row),
            "" if loss is None else f"{loss:.3f}",
            "" if speed is None else f"{speed:,.0f}",
        )
        for node in row["node_samples"]:
            gpus = gpu_percents(node)
            lines.add_row(
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
    return lines


def checks_table(checks: Sequence[Check]) -> Table:
    """Render the output of `doctor`."""
    rows = table("", "CHECK", "RESULT")
    for check in checks:
        mark, style = ("ok", "green") if check.ok else ("--", "dim") if check.optional else ("!!", "bold red")
        rows.add_row(Text(mark, style=style), check.name, check.detail)
    return rows


# --- formatting


def number(value: Any) -> str:
    """Format a value for people: numbers with separators, mappings as `name value, ...`, other values as short text."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return shorten(", ".join(f"{key} {number(inner)}" for key, inner in value.items()), 160) or "none"
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(inner, (Mapping, list, tuple)) for inner in value)
        return shorten(counted(len(value), "value") if nested else ", ".join(map(number, value)), 160) or "none"
    if not isinstance(value, (int, float)):
        return f"{value[:12]}…" if _HASH.fullmatch(str(value)) else shorten(str(value), 160)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Format a duration, such as `42s`, `3m10s`, `5h02m` or `3d04h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def shorten(text: str, limit: int) -> str:
    """Join a text into one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
