"""Commands about submitted runs: `ps`, `show`, `logs`, `why`, `top`, `wait`, `cancel`, `scale`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.cli.known_runs import print_elsewhere


def ps(
    include_finished: Annotated[bool, typer.Option("--all", "-a", help="list finished runs too")] = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="show each run below the run that started it (pipeline steps, trials)")
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="NAME,...", help="show these columns, such as run,state,goodput"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs that have not ended."""
    from ropewalk.cluster.run.directory import RunDir
    from ropewalk.cluster.text import counted
    from ropewalk.jobs.runs.show import status
    from ropewalk.jobs.runs.show.listing import list_rows
    from ropewalk.jobs.runs.show.open_runs import open_runs
    from ropewalk.jobs.runs.show.tables import ONE_LINE, PLAIN_COLUMNS, column_named, console, runs_table

    shown = [column_named(name) for name in columns.split(",")] if columns is not None else PLAIN_COLUMNS
    runs, num_others = (status.all_runs(), 0) if include_finished or tree else open_runs(status.roots())
    rows = list_rows(runs, include_finished=include_finished, tree=tree)
    if column_named("goodput") in shown:
        rows = [{**row, "goodput": status.run_goodput(RunDir(row["directory"])).share} for row in rows]
    if as_json:
        print_json(rows)
    elif rows:
        console(piped_width=ONE_LINE).print(runs_table(rows, columns=shown), crop=False)
    elif runs or num_others:
        print(f"no live runs; `ropewalk ps --all` lists {counted(len(runs) + num_others, 'finished run')}")
    else:
        roots = ", ".join(map(str, status.roots()))
        print(f"no runs under {roots}; see `ropewalk run --help`, or try `ropewalk quickstart`")
    if not rows and not as_json:
        print_elsewhere("ps")


def show(
    run_ref: RunRef,
    as_json: AsJson = False,
    plot: Annotated[bool, typer.Option("--plot", help="write plots to FILE.png, or into the run directory")] = False,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.png]", help="file for the plots")] = None,
) -> None:
    """Show a run: attempts, results, metrics, events, and the trials of a sweep."""
    from ropewalk.jobs.runs.show import show as pages
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.status import find_run

    run = freshen(find_run(run_ref))
    if plot or file:
        from ropewalk.jobs.runs.show.view import user_path

        print("\n".join(map(user_path, pages.pictures(run, file))))
    elif as_json:
        print_json(pages.plain(run))
    else:
        from ropewalk.jobs.runs.show.tables import console

        console().print(pages.page(run), crop=False)


def logs(
    run_ref: RunRef,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="print new lines until the run ends")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="only logs of this rank")] = None,
    node: Annotated[int | None, typer.Option("--node", help="only logs of this node")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object per line: attempt, source, text")] = False,
) -> None:
    """Print the logs of job scripts, nodes and ranks of all attempts."""
    from ropewalk.jobs.runs.show.follow import Watch
    from ropewalk.jobs.runs.show.logs import follow_logs, read_logs, refuse_absent
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.status import find_run, is_final

    run = freshen(find_run(run_ref))
    if not follow or is_final(run):  # a live run may still start that rank or node
        refuse_absent(run, rank, node)
    is_silent = True
    for line in follow_logs(run, Watch(run).over, rank, node) if follow else read_logs(run, rank, node):
        if as_json:
            print_json(line._asdict())
        else:
            print(line, flush=follow)
        is_silent = False
    if is_silent:
        sys.stderr.write(f"{run.id} has no output yet; `ropewalk why {run.id}` explains its state\n")


def why(run_ref: RunRef, as_json: AsJson = False) -> None:
    """Explain the state of a run, and what to do about it."""
    from ropewalk.jobs.runs.show.diagnose import diagnose, diagnosis_page
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.status import find_run, states
    from ropewalk.jobs.runs.show.tables import console

    run = freshen(find_run(run_ref))
    state = states([run])[run.id]
    diagnosis = diagnose(run, state)
    if as_json:
        print_json({"run": run.id, "state": state.state, **diagnosis.plain()})
    else:
        console().print(diagnosis_page(run, diagnosis), soft_wrap=True)


def top(
    once: Annotated[bool, typer.Option("--once", help="print the page once and exit")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print each page as a JSON object in one line")] = False,
) -> None:
    """Watch live runs and the load of their nodes."""
    from ropewalk.jobs.runs.show.tables import console
    from ropewalk.jobs.runs.show.top import pages, watch

    if not as_json:
        return watch(console(), once)
    for rows in pages(once):
        print_json({"time": time.time(), "runs": rows})
    return None


def wait(run_ref: RunRef, as_json: AsJson = False) -> None:
    """Wait until a run ends, and exit with its outcome."""
    from ropewalk.jobs.cli.outcome import exit_with_outcome
    from ropewalk.jobs.runs.show import follow
    from ropewalk.jobs.runs.show.status import find_run

    run = find_run(run_ref)
    exit_with_outcome(run, follow.wait(run), as_json)


def cancel(
    run_refs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="runs: ids, unique prefixes of ids, or directories", autocompletion=complete.runs),
    ],
    as_json: AsJson = False,
) -> None:
    """Cancel runs after a final checkpoint."""
    from ropewalk.jobs.runs.show.cancel import cancel_runs

    cancelled = cancel_runs(run_refs)
    if as_json:
        print_json([item._asdict() for item in cancelled])
    else:
        for item in cancelled:
            print(item.message)


def scale(
    run_ref: RunRef,
    nodes: Annotated[int, typer.Argument(min=1, metavar="NODES", help="new number of nodes")],
    as_json: AsJson = False,
) -> None:
    """Change the number of nodes of a live elastic run without repeating a step."""
    from ropewalk.cluster.text import counted
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.submit.resume import scale as request_nodes

    run = find_run(run_ref)
    request_nodes(run, nodes)
    if as_json:
        print_json({"run": run.id, "nodes": nodes})
        return
    print(f"scaling {run.id} to {counted(nodes, 'node')} at the next step; added nodes join as they become available")
