"""How a followed run ends for the user: its last line and the exit code; and what a job's keys are."""

import json
import sys
from typing import Any

import typer

from cluster.config import describe_keys
from cluster.run.directory import RunDir
from cluster.spec import RunState
from jobs.registry import config_of, find_job
from jobs.runs.follow import Watch, follow
from jobs.runs.show import ending
from jobs.runs.status import final_object
from jobs.runs.tables import console, jobs_table, keys_table


def explain_job(usage: str, command: str, job: str | None) -> None:
    """The command's usage and the jobs there are, or every key of one job."""
    out = console()
    if job is None:
        out.print(usage, markup=False, soft_wrap=True)
        out.print(jobs_table())
        return
    spec = find_job(job)
    line = f"ropewalk {command} {spec.name} [-c FILE.yaml] [key=value ...] [--on CLUSTER]"
    out.print(f"{line}\n\n{spec.summary}\n", markup=False, soft_wrap=True)
    out.print(keys_table(describe_keys(config_of(spec))))


def see_through(run: RunDir, as_json: bool) -> None:
    """Follow a run to its end and exit with its outcome. Ctrl-C leaves it running."""
    try:
        watch = follow(run, console(stderr=True))
    except KeyboardInterrupt:
        hint = f"`ropewalk logs -f {run.id}` follows it, `ropewalk cancel {run.id}` ends it"
        sys.stderr.write(f"\n{run.id} goes on; {hint}\n")
        raise typer.Exit(130) from None
    conclude(run, watch, as_json)


def conclude(run: RunDir, watch: Watch, as_json: bool) -> None:
    """Print how it ended; exit 0 if it succeeded, else 1."""
    result: dict[str, Any] = final_object(run)
    succeeded = result["state"] == RunState.SUCCEEDED
    if not succeeded:
        reason = watch.abandoned or result.get("cause") or ""
        told = f"{result['state']}{f': {reason}' if reason else ''}; `ropewalk why {run.id}` says more"
        sys.stderr.write(f"{run.id} ended as {told}\n")
    if as_json:
        sys.stdout.write(f"{json.dumps(result, default=str)}\n")
    elif succeeded:
        console().print(ending(run, result))
    raise typer.Exit(0 if succeeded else 1)
