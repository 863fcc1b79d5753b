"""The command `fetch`, and reports of requests to the hub and of fetches on the standard error."""

import sys
from typing import Annotated

import typer

from ropewalk.cluster.hub import progress
from ropewalk.jobs.cli.complete import AsJson, Cluster, ConfigFile, JobName, Overrides
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.cli.progress import show_progress


def report_fetches() -> None:
    """Report fetches on the standard error from now on."""
    progress.notify = _notify
    progress.show = lambda label, present, total: show_progress(f"fetch {label}", present, total)


def _notify(message: str) -> None:
    sys.stderr.write(f"{message}\n")


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
