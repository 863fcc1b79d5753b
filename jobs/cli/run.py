"""Commands that start runs: `run`, `submit`, `resume`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.arguments import job_of, with_program
from ropewalk.jobs.cli.complete import (
    AllKeys,
    AsJson,
    Cluster,
    ConfigFile,
    DryRun,
    HelpFlag,
    JobName,
    NewKeys,
    Overrides,
    RunRef,
    Script,
)
from ropewalk.jobs.cli.json_output import print_json

if TYPE_CHECKING:
    from ropewalk.cluster.run.directory import RunDir


def run(
    context: typer.Context,
    *,
    job: JobName = None,
    overrides: Overrides = None,
    config: ConfigFile = None,
    on: Cluster = "local",
    resumed: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="resume this run of the job instead of starting a new one",
            autocompletion=complete.runs,
        ),
    ] = None,
    dry_run: DryRun = False,
    script: Script = False,
    as_json: AsJson = False,
    help_: HelpFlag = False,
    every_key: AllKeys = False,
) -> None:
    """Submit a job, follow it, and exit with its outcome."""
    job, overrides = job_of(job, overrides, config)
    if help_ or every_key or job is None:
        return _help(context, job, every_key)
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.cli.outcome import follow_to_end
    from ropewalk.jobs.runs.show.tables import console
    from ropewalk.jobs.runs.show.view import user_path
    from ropewalk.jobs.runs.submit.resume import resume_as
    from ropewalk.jobs.runs.submit.submit import configure, submit

    if resumed and (dry_run or script):
        option = "--script" if script else "--dry-run"
        raise ConfigError(f"{option} cannot be combined with --resume: nothing new would be submitted")
    if resumed:
        return follow_to_end(resume_as(job, config, overrides or [], resumed), as_json)
    configured = configure(job, config, with_program(context, job, overrides, config))
    if dry_run or script:
        return _print_dry_run(job, [configured], on, script=script, as_json=as_json)
    started = submit(job, configured, on, command=_command())
    _print_notices(started)
    console(stderr=True).print(f"{started.id}: {user_path(started.path)}", soft_wrap=True)
    return follow_to_end(started, as_json)


def submit(
    context: typer.Context,
    *,
    job: JobName = None,
    overrides: Overrides = None,
    config: ConfigFile = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="CLUSTER[,...]",
            help="cluster from the profile file, or local, slurm, k8s; of several the run takes the first that has nodes",
            autocompletion=complete.clusters,
        ),
    ] = "local",
    after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[any:|failed:]RUN",
            help="start once this run has succeeded (any: has ended; failed: has ended without success); repeatable",
            autocompletion=complete.dependencies,
        ),
    ] = None,
    each: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUES", help="one run per value: seed=1..8, optim.lr=1e-3,1e-4; repeatable")
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, metavar="N", help="with --each: run at most N at a time")] = None,
    dry_run: DryRun = False,
    script: Script = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object per run: run, job, directory")] = False,
    siblings: Annotated[str | None, typer.Option(hidden=True, help="SUBMISSION:CLUSTERS that this run is a part of")] = None,
    help_: HelpFlag = False,
    every_key: AllKeys = False,
) -> None:
    """Submit a job and print its run id; with --each submit many runs and print an id per line."""
    job, overrides = job_of(job, overrides, config, "submit")
    if help_ or every_key or job is None:
        return _help(context, job, every_key)
    if "," in on:
        if after or each:
            from ropewalk.cluster.errors import ConfigError

            raise ConfigError(f"--on {on}: cannot be combined with --after or --each; name one cluster")
        return _submit_siblings(context, job, on, only_show=dry_run or script, as_json=as_json)
    from ropewalk.cluster.backends.submission import Dependency, split_dependency
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.submit.submit import configure_each, submit_many

    conditions = [split_dependency(text) for text in after or []]
    predecessors = [Dependency(find_run(ref), condition) for condition, ref in conditions]
    configs = configure_each(job, config, with_program(context, job, overrides, config), each or [])
    if dry_run or script:
        return _print_dry_run(job, configs, on, script=script, as_json=as_json, waits=bool(predecessors))
    extra = None
    if siblings:
        from ropewalk.jobs.cli.siblings import sibling_record

        extra = sibling_record(siblings)
    runs = submit_many(job, configs, on, after=predecessors, at_once=at_once, command=_command(), extra=extra)
    _print_notices(runs[0])
    if as_json:
        for each_run in runs:
            _print_submitted(each_run)
        return None
    return print("\n".join(run.id for run in runs))


def check(
    *,
    job: JobName = None,
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Check a job file without its data: keys, their combinations, and your own modules, which are imported."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.runs.submit.plan import changed_keys
    from ropewalk.jobs.runs.submit.records import needs_own_code
    from ropewalk.jobs.runs.submit.submit import check as check_file

    if config is None:
        raise ConfigError("no job file; write: ropewalk check -c FILE.yaml")
    job, overrides = job_of(job, overrides, config, "check")
    assert job is not None
    checked, mistakes = check_file(job, config, overrides or [])
    own_code = checked is not None and needs_own_code(job, checked)
    number = None if checked is None else len(list(changed_keys(checked)))
    if as_json:
        answer = {"file": str(config), "job": job, "valid": checked is not None, "mistakes": mistakes}
        print_json({**answer, "num_changed_keys": number, "imported_from": str(Path.cwd()) if own_code else None})
        raise typer.Exit(2 if checked is None else 0)
    if checked is None:
        sys.stderr.write("".join(f"error: {config}: {' '.join(mistake.split())}\n" for mistake in mistakes))
        raise typer.Exit(2)
    imported = f"; your modules were imported from {Path.cwd()}" if own_code else ""
    print(f"{config}: a valid file of the job {job}, with {number} keys that differ from their defaults{imported}")
    print("Data, models and the cluster were not looked at: `ropewalk run --dry-run` does that.")


def resume(
    run_ref: RunRef,
    overrides: NewKeys = None,
    code: Annotated[bool, typer.Option("--code", help="use the current code instead of the submitted code")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="print the run id instead of following the run")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a new attempt of a run that ended, from its last checkpoint."""
    from ropewalk.jobs.cli.outcome import follow_to_end
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.submit.resume import resume as start_attempt

    run = find_run(run_ref)
    start_attempt(run, overrides or [], new_code=code)
    if detach and as_json:
        _print_submitted(run)
    elif detach:
        print(run.id)
    else:
        follow_to_end(run, as_json)


def _help(context: typer.Context, job: str | None, every_key: bool) -> None:
    from ropewalk.jobs.cli.job_help import print_job_help, print_jobs

    if job is not None:
        return print_job_help(context.info_name or "run", job, every_key)
    if context.obj:
        from ropewalk.cluster.errors import ConfigError

        raise ConfigError(f"no job is named; write: {context.info_name} command -- {' '.join(context.obj[:3])}")
    typer.echo(context.get_help())
    return print_jobs()


def _print_dry_run(job: str, configs: list[Any], on: str, *, script: bool, as_json: bool, waits: bool = False) -> None:
    from ropewalk.jobs.runs.show.tables import console
    from ropewalk.jobs.runs.submit.dry_run import render
    from ropewalk.jobs.runs.submit.plan import plan, plan_page

    if script:
        text = render(job, configs, on, waits=waits)
        if as_json:
            print_json({"job": job, "cluster": on, "script": text})
        else:
            print(text.rstrip("\n"))
        return
    with console(stderr=True).status("working out parameters, memory and time ..."):  # in a process of its own: some 8 s
        planned = plan(job, configs, on, waits=waits)
    if as_json:
        print_json(planned.plain())
    else:
        console().print(plan_page(planned))


def _submit_siblings(context: typer.Context, job: str, on: str, *, only_show: bool, as_json: bool) -> None:
    """Submit to several clusters, and print the run on each; or show what a dry run on each says."""
    from ropewalk.jobs.cli.siblings import show_on_each, submit_siblings
    from ropewalk.jobs.cli.ssh.command import ARGUMENTS

    typed = [each for each in context.meta[ARGUMENTS] if each not in (f"--on={on}", "--json")]
    if "--on" in typed:
        del typed[(index := typed.index("--on")) : index + 2]
    if only_show:
        return show_on_each(on.split(","), [*typed, *(["--json"] if as_json else [])], context.obj or [])
    for submitted in submit_siblings(job, on.split(","), typed, context.obj or []):
        if as_json:
            print_json(submitted)
        else:
            print(submitted["run"])
    sys.stderr.write(
        "the first one that has nodes starts, as soon as `ropewalk sync --follow` runs on this machine; the others do not\n"
    )
    return None


def _print_submitted(run: "RunDir") -> None:
    print_json({"run": run.id, "job": run.record["job"], "directory": str(run.path)})


def _print_notices(started: "RunDir") -> None:
    from ropewalk.cluster.backends.profiles import backend_of
    from ropewalk.cluster.run.siblings import is_first_sibling
    from ropewalk.jobs.runs.submit.snapshot import code_notice, project_notice

    if is_first_sibling(started):  # the same code travels to each cluster
        sys.stderr.write(code_notice(started.record["code"]) + project_notice(started.record.get("project")))
    resources_notice = backend_of(started).resources_notice(started.resources())
    for notice in filter(None, (started.record.get("gpus_notice"), resources_notice)):
        sys.stderr.write(f"resources: {notice}\n")


def _command() -> list[str]:
    return ["ropewalk", *sys.argv[1:]]
