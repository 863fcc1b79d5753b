"""Commands about runs that were submitted: ps, show, logs, why, top, wait, cancel, scale."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.arguments import AsJson, RunRef

if TYPE_CHECKING:
    from ropewalk.cluster.run.directory import RunDir


def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="list finished runs too")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="draw each run below the one that started it: steps, trials")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs that are not over."""
    from ropewalk.cluster.errors import DamagedFileError
    from ropewalk.cluster.text import counted
    from ropewalk.jobs.runs.show import status
    from ropewalk.jobs.runs.show.tables import ONE_LINE, console, runs_table

    known = status.all_runs()
    try:
        rows = _rows(known, every=every, tree=tree)
    except DamagedFileError:  # all are looked through only where there is one: a thousand runs are read once
        known = status.readable(known)
        rows = _rows(known, every=every, tree=tree)
    if as_json:
        print(json.dumps(rows))
    elif rows:
        console(piped_width=ONE_LINE).print(runs_table(rows), crop=False)
    elif known:
        print(f"no run is live; `ropewalk ps --all` lists {counted(len(known), 'finished run')}")
    else:
        roots = ", ".join(map(str, status.roots()))
        print(f"no runs yet under {roots}; `ropewalk run --help` starts one, `ropewalk quickstart` shows it all")


def _rows(known: "Sequence[RunDir]", *, every: bool, tree: bool) -> list[dict[str, Any]]:
    """The rows of `ps`. Raises DamagedFileError."""
    from ropewalk.jobs.runs.show import status
    from ropewalk.jobs.runs.show.tree import family_tree

    outcomes = {run: status.final_outcome(run) for run in known}
    runs = [run for run, outcome in outcomes.items() if every or outcome is None]
    members = family_tree(known, {run.id for run in runs}) if tree else []
    runs = [member.run for member in members] if tree else runs
    states = status.states(runs, {run.id: status.final_outcome(run) if tree else outcomes[run] for run in runs})
    rows = [status.summary(run, states[run.id]) for run in runs]
    for row, member in zip(rows, members, strict=False):
        row |= {"parent": member.parent, "role": member.words, "line": member.line}
    return rows


def show(
    run_ref: RunRef,
    as_json: AsJson = False,
    plot: Annotated[bool, typer.Option("--plot", help="write pictures: to FILE.png, else into the run directory")] = False,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.png]", help="where the pictures go")] = None,
) -> None:
    """Show a run: attempts, results, metrics, events; of a sweep its trials."""
    from ropewalk.jobs.runs.show import show as pages
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.status import find_run

    found = freshen(find_run(run_ref))
    if plot or file:
        print("\n".join(map(str, pages.pictures(found, file))))
    elif as_json:
        print(json.dumps(pages.plain(found), default=str))
    else:
        from ropewalk.jobs.runs.show.tables import console

        console().print(pages.page(found))


def logs(
    run_ref: RunRef,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="print new lines until the run is over")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="only this rank's")] = None,
    node: Annotated[int | None, typer.Option("--node", help="only this node's")] = None,
) -> None:
    """Print the logs of job scripts, nodes and ranks, of all attempts."""
    from ropewalk.jobs.runs.show.follow import Watch
    from ropewalk.jobs.runs.show.logs import follow_logs, read_logs, refuse_absent
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.status import find_run, is_final

    found = freshen(find_run(run_ref))
    if not follow or is_final(found):  # else it may be about to start
        refuse_absent(found, rank, node)
    for line in follow_logs(found, Watch(found).over, rank, node) if follow else read_logs(found, rank, node):
        print(line, flush=follow)


def why(run_ref: RunRef) -> None:
    """Explain why a run is in its state, and what to do about it."""
    from ropewalk.jobs.runs.show.diagnose import diagnose, diagnosis_page
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.status import find_run, states
    from ropewalk.jobs.runs.show.tables import console

    found = freshen(find_run(run_ref))
    console().print(diagnosis_page(found, diagnose(found, states([found])[found.id])), soft_wrap=True)


def top(once: Annotated[bool, typer.Option("--once", help="print the page once and exit")] = False) -> None:
    """Watch live runs and the load of their nodes."""
    from ropewalk.jobs.runs.show.tables import console
    from ropewalk.jobs.runs.show.top import watch

    watch(console(), once)


def wait(run_ref: RunRef, as_json: AsJson = False) -> None:
    """Wait until a run is over, and exit with its outcome."""
    from ropewalk.jobs.cli.outcome import exit_with_outcome
    from ropewalk.jobs.runs.show import follow
    from ropewalk.jobs.runs.show.status import find_run

    found = find_run(run_ref)
    exit_with_outcome(found, follow.wait(found), as_json)


def cancel(
    run_refs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="runs: ids, unique beginnings of them, directories", autocompletion=complete.runs),
    ],
) -> None:
    """Cancel runs after a final checkpoint."""
    from ropewalk.jobs.runs.show.cancel import cancel_runs

    for line in cancel_runs(run_refs):
        print(line)


def scale(run_ref: RunRef, nodes: Annotated[int, typer.Argument(min=1, metavar="NODES", help="its new number of nodes")]) -> None:
    """Change the number of nodes of a live elastic run; no step is repeated."""
    from ropewalk.cluster.text import counted
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.submit.submit import scale as request_nodes

    found = find_run(run_ref)
    request_nodes(found, nodes)
    print(f"scaling {found.id} to {counted(nodes, 'node')} at the next step; added nodes join as they become available")
