"""The `ropewalk` command. Only typer is imported on top: --help must answer at once."""

import gc
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli import site as cli_site
from jobs.cli import sweep as cli_sweep
from jobs.cli.site import Cluster

app = typer.Typer(
    name="ropewalk",
    help="Raw text to a trained language model, in whatever lane there is: a laptop, Slurm, Kubernetes.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RunWord = Annotated[str, typer.Argument(metavar="RUN", help="a run's id, the beginning of it, its directory, or `latest`")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="overrides, such as optim.lr=1e-3")]
JobWord = Annotated[str | None, typer.Argument(metavar="JOB", help="preprocess, pretrain, evaluate, ...")]
ConfigFile = Annotated[Path | None, typer.Option("-c", "--config", metavar="FILE.yaml", help="the job file")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable: JSON on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the script or manifest, start nothing")]
HelpFlag = Annotated[bool, typer.Option("--help", help="show this, or with a JOB every key of it")]
OWN_HELP: dict[str, Any] = {"help_option_names": []}


@app.command(context_settings=OWN_HELP)
def run(
    context: typer.Context,
    *,
    job: JobWord = None,
    words: Words = None,
    config: ConfigFile = None,
    on: Cluster = "local",
    resumed: Annotated[str | None, typer.Option("--resume", metavar="RUN", help="go on with a run of this job instead")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    help_: HelpFlag = False,
) -> None:
    """Submit a job, follow it, and exit with its outcome."""
    if help_ or job is None:
        from jobs.runs.exit_status import explain_job

        return explain_job(context.get_help(), context.info_name or "", job)
    from cluster.errors import ConfigError
    from jobs.runs.exit_status import see_through
    from jobs.runs.snapshot import told
    from jobs.runs.submit import configure, render, resume_instead, submit
    from jobs.runs.tables import console

    if resumed and dry_run:
        raise ConfigError(f"--dry-run shows what a new run would be, and --resume {resumed} begins none")
    if resumed:
        return see_through(resume_instead(job, config, words or [], resumed), as_json)
    wanted = configure(job, config, words or [])
    if dry_run:
        return print(render(job, [wanted], on).rstrip("\n"))
    started = submit(job, wanted, on, command=["ropewalk", *sys.argv[1:]])
    sys.stderr.write(told(started.record["code"]))
    console(stderr=True).print(f"{started.id}: {started.path}", soft_wrap=True)
    return see_through(started, as_json)


@app.command(context_settings=OWN_HELP)
def submit(
    context: typer.Context,
    *,
    job: JobWord = None,
    words: Words = None,
    config: ConfigFile = None,
    on: Cluster = "local",
    after: Annotated[list[str] | None, typer.Option("--after", metavar="RUN", help="start when that run has succeeded")] = None,
    each: Annotated[list[str] | None, typer.Option("--each", metavar="KEY=VALUES", help="a run for each: 1..8, a,b")] = None,
    at_once: Annotated[int | None, typer.Option("--at-once", min=1, metavar="N", help="of them, run N at a time")] = None,
    dry_run: DryRun = False,
    help_: HelpFlag = False,
) -> None:
    """Submit a job and print its run id; with --each many runs, an id a line."""
    if help_ or job is None:
        from jobs.runs.exit_status import explain_job

        return explain_job(context.get_help(), context.info_name or "", job)
    from jobs.runs import submit as submission
    from jobs.runs.snapshot import told
    from jobs.runs.status import find_run

    others = [find_run(word) for word in after or []]
    configs = submission.configure_each(job, config, words or [], each or [])
    if dry_run:
        print(submission.render(job, configs, on).rstrip("\n"))
        return None
    runs = submission.submit_many(job, configs, on, after=others, at_once=at_once, command=["ropewalk", *sys.argv[1:]])
    sys.stderr.write(told(runs[0].record["code"]))
    print("\n".join(run.id for run in runs))
    return None


@app.command()
def resume(
    word: RunWord,
    words: Annotated[list[str] | None, typer.Argument(metavar="[resources.key=value ...]", help="other resources")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not follow it")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a new attempt of a run that ended, from its last checkpoint."""
    from jobs.runs.exit_status import see_through
    from jobs.runs.status import find_run
    from jobs.runs.submit import resume as start

    found = find_run(word)
    start(found, words or [])
    if detach:
        print(found.id)
    else:
        see_through(found, as_json)


@app.command()
def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="finished runs too")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs that are live."""
    from jobs.runs import status

    outcomes = {r: status.final_outcome(r) for r in status.all_runs()}
    runs = [r for r, outcome in outcomes.items() if every or outcome is None]
    states = status.states(runs, {r.id: outcomes[r] for r in runs})
    rows = [status.summary(r, states[r.id]) for r in runs]
    if as_json:
        print(json.dumps(rows))
    else:
        from jobs.runs.tables import console, runs_table

        hint = "" if every else "; `ropewalk ps --all` lists the finished ones"
        console().print(runs_table(rows) if rows else f"no runs{hint}")


@app.command()
def show(
    word: RunWord,
    as_json: AsJson = False,
    plot: Annotated[bool, typer.Option("--plot", help="write pictures: to FILE, else into the run")] = False,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.png]", help="where --plot writes")] = None,
) -> None:
    """Show all of a run: attempts, results, metrics, events; of a sweep its trials."""
    from jobs.runs import show as showing
    from jobs.runs.remote import freshen
    from jobs.runs.status import find_run

    found = freshen(find_run(word))
    if plot or file:
        print("\n".join(map(str, showing.pictures(found, file))))
    elif as_json:
        print(json.dumps(showing.plain(found), default=str))
    else:
        from jobs.runs.tables import console

        console().print(showing.page(found))


@app.command()
def logs(
    word: RunWord,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until the run is over")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="of this rank only")] = None,
    node: Annotated[int | None, typer.Option("--node", help="of this node only")] = None,
) -> None:
    """Print the logs of job scripts, nodes and ranks, across attempts."""
    from jobs.runs.follow import Watch
    from jobs.runs.logs import follow_logs, read_logs
    from jobs.runs.remote import freshen
    from jobs.runs.status import find_run

    found = freshen(find_run(word))
    for line in follow_logs(found, Watch(found).over, rank, node) if follow else read_logs(found, rank, node):
        print(line, flush=follow)


@app.command()
def cancel(words: Annotated[list[str], typer.Argument(metavar="RUN...", help="ids, beginnings of them, directories")]) -> None:
    """Make runs save, leave and not come back."""
    from jobs.runs.cancel import cancel_runs

    for line in cancel_runs(words):
        print(line)


@app.command()
def scale(word: RunWord, nodes: Annotated[int, typer.Argument(min=1, metavar="NODES", help="how many it shall have")]) -> None:
    """Let an elastic run go on with fewer nodes, which it gives back, or with more, and redo no step."""
    from cluster.text import counted
    from jobs.runs.status import find_run
    from jobs.runs.submit import scale as ask

    found = find_run(word)
    ask(found, nodes)
    print(f"{found.id} goes on with {counted(nodes, 'node')} from its next step boundary on, more as they are there")


@app.command()
def wait(word: RunWord, as_json: AsJson = False) -> None:
    """Return when a run is over, with its outcome as exit code."""
    from jobs.runs import follow
    from jobs.runs.exit_status import conclude
    from jobs.runs.status import find_run

    found = find_run(word)
    conclude(found, follow.wait(found), as_json)


@app.command()
def why(word: RunWord) -> None:
    """Say in plain words why a run is in the state it is in, and what to do."""
    from jobs.runs.diagnose import diagnose, diagnosis_page
    from jobs.runs.remote import freshen
    from jobs.runs.status import find_run, states
    from jobs.runs.tables import console

    found = freshen(find_run(word))
    console().print(diagnosis_page(found, diagnose(found, states([found])[found.id])), soft_wrap=True)


@app.command()
def top(once: Annotated[bool, typer.Option("--once", help="print it once and leave")] = False) -> None:
    """Show live runs and their nodes, from files only."""
    from jobs.runs.tables import console
    from jobs.runs.top import watch

    watch(console(), once)


@app.command()
def sync(word: Annotated[str | None, typer.Argument(metavar="[RUN]", help="this run only")] = None) -> None:
    """Upload W&B files that were written without a network."""
    from jobs.runs.status import all_runs, find_run
    from jobs.tracking.wandb_sync import sync_run

    for found in [find_run(word)] if word else all_runs():
        for path in sync_run(found):
            print(f"{found.id}: {path.name}")


@app.command()
def export(
    word: RunWord,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="where the Hugging Face directory goes")],
    step: Annotated[int | None, typer.Option("--step", help="of this checkpoint, not the newest")] = None,
) -> None:
    """Write a checkpoint as a Hugging Face model directory."""
    from jobs.runs.remote import export_elsewhere
    from jobs.runs.status import find_run
    from jobs.training.export import export as write

    found = find_run(word)
    print(directory if export_elsewhere(found, directory, step) else write(found, directory, step))


app.command()(cli_sweep.best)
app.command()(cli_sweep.confirm)
app.command()(cli_site.doctor)
app.command()(cli_site.quickstart)
app.command(context_settings={**OWN_HELP, "ignore_unknown_options": True})(cli_site.lab)


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2, never a traceback."""
    gc.set_threshold(100_000)  # what a command makes lives as long as it does: to look for cycles in it was a seventh of `ps`
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has seen enough
        code = 0
    except Exception as error:
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's own: a missing argument, an unknown option
        return _mistake(" ".join(format_message().split()))
    from cluster.errors import EXIT_FAILED, ConfigError, DataError, RopewalkError

    if not isinstance(error, RopewalkError):
        raise error
    code = _mistake(" ".join(str(error).split()))
    return code if isinstance(error, (ConfigError, DataError)) else EXIT_FAILED


def _mistake(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
