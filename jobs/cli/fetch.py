"""The command `fetch`, and reports of requests to the hub and of fetches on the standard error."""

import sys
import time
from typing import Annotated

import typer

from ropewalk.cluster.hub import progress
from ropewalk.cluster.text import format_bytes
from ropewalk.jobs.cli.complete import AsJson, Cluster, ConfigFile, JobName, Overrides
from ropewalk.jobs.cli.json_output import print_json

_SECONDS = 10.0  # between two lines where there is no terminal; there it is a hundredth


class _Shown:
    """The last report of a fetch."""

    label = ""
    time = 0.0
    first_bytes = 0


def report_fetches() -> None:
    """Report fetches on the standard error from now on."""
    progress.notify = _notify
    progress.show = lambda label, present, total: show_progress(f"fetch {label}", present, total)


def _notify(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def show_progress(label: str, present_bytes: int, total_bytes: int) -> None:
    """Write how much of a transfer is done: in place on a terminal, else a line every ten seconds."""
    now, terminal = time.monotonic(), sys.stderr.isatty()
    is_new, is_done = label != _Shown.label, present_bytes >= total_bytes
    if is_new:
        _Shown.first_bytes = present_bytes
    elif not is_done and now - _Shown.time < _SECONDS / (100 if terminal else 1):
        return
    if is_done and (is_new or _Shown.first_bytes >= total_bytes):
        return  # nothing was to be fetched
    _Shown.label, _Shown.time = ("" if is_done else label), now
    line = f"{label}: {format_bytes(present_bytes)} of {format_bytes(total_bytes)}"
    sys.stderr.write(f"\r\x1b[K{line}{chr(10) if is_done else ''}" if terminal else f"{line}\n")
    sys.stderr.flush()


def fetch(
    *,
    job: JobName = None,
    overrides: Overrides = None,
    config: ConfigFile = None,
    on: Cluster = "local",
    as_json: AsJson = False,
    each: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUES", help="as for submit: what runs with all these values need")
    ] = None,
) -> None:
    """Fetch the models, tokenizers and data that a job names on the Hugging Face hub or at a URL, for the nodes to read."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.cli.arguments import job_of
    from ropewalk.jobs.runs.submit.submit import configure_each, fetch_inputs

    job, overrides = job_of(job, overrides, config, "fetch")
    if job is None:
        raise ConfigError("no job given; name a job file (`ropewalk fetch -c FILE`), or a job and its keys")
    fetched = fetch_inputs(configure_each(job, config, overrides or [], each or []), on)
    if as_json:
        print_json([item._asdict() for item in fetched])
        return
    for item in fetched:
        print(f"{item.key}: {item.name}\n  {item.path}")
    if not fetched:
        print("nothing to fetch: the job names nothing on the hub")
