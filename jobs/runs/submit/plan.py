"""The plan that a dry run prints: keys that differ from their defaults, the work, its processes, and its start."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.text import format_value
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.runs.submit.provenance import mask_secrets
from ropewalk.jobs.runs.submit.submit import DryRun, dry_run, needs_own_code, start_of

if TYPE_CHECKING:
    from rich.console import RenderableType

LONGEST = 240  # characters of a value


def plan(job: str, configs: Sequence[JobConfig], cluster_name: str, *, waits: bool = False) -> "RenderableType":
    """Return the plan of a submission, after the same checks. `waits`: it starts after other runs. Raises RopewalkError."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    planned = dry_run(job, configs, cluster_name, waits=waits)
    parts: list[RenderableType] = [Text(f"{job} on {cluster_name}: a dry run, nothing is submitted")]
    for title, rows in {
        "keys that differ from the defaults": list(changed_keys(planned.configs[0])),
        "plan": _rows(job, planned, waits=waits),
    }.items():
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in rows:
            grid.add_row(Text(f"  {name}", style="bold"), text)
        parts += [Text(), Text(title, style="bold underline"), grid]
    return Group(*parts, Text(), Text("`--script` instead of `--dry-run` prints the script or manifest."))


def changed_keys(config: JobConfig) -> Iterator[tuple[str, str]]:
    """Yield each dotted key whose resolved value is not its class's default, with the value; secrets are masked."""
    for name, value in _flat(mask_secrets(config.model_dump(mode="json", exclude_defaults=True))):
        text = format_value(value)
        yield name, text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _rows(job: str, planned: DryRun, *, waits: bool) -> list[tuple[str, str]]:
    run, config = planned.runs[0], planned.configs[0]
    view, number = view_of(run), len(planned.runs)
    code = [("code", f"imported your modules from {Path.cwd()}")] if needs_own_code(job, config) else []
    return [
        *([("runs", f"{number:,}, of which this is the first")] if number > 1 else []),
        ("directory", f"{run.path.parent}/{run.id.removesuffix('-dry-run')}-DATE"),
        *code,
        *view.plan(config),
        ("processes", view.processes(config.resources)),
        *[("note", notice) for notice in planned.notices],
        ("start", _start(planned, waits=waits)),
    ]


def _start(planned: DryRun, *, waits: bool) -> str:
    if waits:
        return "once the runs that it waits for have ended"
    if estimate := start_of(planned):
        return estimate
    profile = planned.backend.cluster
    return "at once, on this machine" if profile.backend == "local" else f"as soon as {profile.name} has room"
