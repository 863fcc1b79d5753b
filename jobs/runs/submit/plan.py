"""The plan that a dry run prints: keys that differ from their defaults, the work, its processes, and its start."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.text import format_value
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.runs.submit.dry_run import DryRun, dry_run, start_of
from ropewalk.jobs.runs.submit.provenance import mask_secrets
from ropewalk.jobs.runs.submit.records import needs_own_code

if TYPE_CHECKING:
    from rich.console import RenderableType

LONGEST = 240  # characters of a value


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a submission."""

    job: str
    cluster: str
    runs: int
    keys: list[tuple[str, str]]  # of the first run: those that differ from their defaults
    rows: list[tuple[str, str]]

    def plain(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON."""
        rows = [{"name": name, "text": text} for name, text in self.rows]
        return {"job": self.job, "cluster": self.cluster, "runs": self.runs, "keys": dict(self.keys), "plan": rows}


def plan(job: str, configs: Sequence[JobConfig], cluster_name: str, *, waits: bool = False) -> Plan:
    """Return the plan of a submission, after the same checks. `waits`: it starts after other runs. Raises RopewalkError."""
    planned = dry_run(job, configs, cluster_name, waits=waits)
    keys, rows = list(changed_keys(planned.configs[0])), _rows(job, planned, waits=waits)
    return Plan(job=job, cluster=cluster_name, runs=len(planned.runs), keys=keys, rows=rows)


def plan_page(plan: Plan) -> "RenderableType":
    """Render a plan."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{plan.job} on {plan.cluster}: a dry run, nothing is submitted")]
    for title, rows in {"keys that differ from the defaults": plan.keys, "plan": plan.rows}.items():
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in rows:
            grid.add_row(Text(f"  {name}", style="bold"), text)
        parts += [Text(), Text(title, style="bold underline"), grid]
    return Group(*parts, Text(), Text("`--script` instead of `--dry-run` prints the script or manifest."))


def changed_keys(config: JobConfig) -> Iterator[tuple[str, str]]:
    """Yield each dotted key with its value, unless that is the default or filled in from other keys; secrets are masked."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    for path, value in _flat(mask_secrets(values)):
        if not _is_filled_in(config, values, path):
            text = format_value(value)
            yield ".".join(path), text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _is_filled_in(config: JobConfig, values: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Return True if the configuration fills in the same value of a key by itself, such as a warm-up of steps/10."""
    without: dict[str, Any] = copy.deepcopy(dict(values))
    del reduce(dict.__getitem__, path[:-1], without)[path[-1]]
    with suppress(ValidationError):
        return type(config).model_validate(without).model_dump(mode="json") == config.model_dump(mode="json")
    return False


def _flat(values: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, (*parents, name))
        else:
            yield (*parents, name), value


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
