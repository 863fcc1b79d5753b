"""The command `repro`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json

if TYPE_CHECKING:
    from ropewalk.jobs.runs.models.reproduction import Figure, Reproduction


def repro(
    run_ref: RunRef,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE ...]", help="keys to change, such as the output", autocompletion=complete.keys),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="RUN", help="only compare with this run", autocompletion=complete.runs),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a run once more, with its keys and its code, and report what differs: circumstances and metrics."""
    from ropewalk.cluster.spec import RunState
    from ropewalk.jobs.cli.outcome import exit_with_outcome, watch_to_end
    from ropewalk.jobs.runs.models.reproduction import compare_runs, reproduce
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.status import final_object, find_run
    from ropewalk.jobs.runs.show.tables import console

    before = freshen(find_run(run_ref))
    if other is None:
        now = reproduce(before, overrides or [], ["ropewalk", *sys.argv[1:]])
        console(stderr=True).print(f"{now.id}: {now.path}", soft_wrap=True)
        watch = watch_to_end(now, as_json)
        if final_object(now)["state"] != RunState.SUCCEEDED:
            exit_with_outcome(now, watch, as_json)
    else:
        now = find_run(other)
    report = compare_runs(before, freshen(now))
    if as_json:
        print_json(report.plain())
    else:
        _print_report(report)


def _print_report(report: "Reproduction") -> None:
    from ropewalk.jobs.runs.show.tables import console, table

    if report.differences:
        page = table("DIFFERS", "BEFORE", "NOW")
        for each in report.differences:
            page.add_row(each.what, each.before, each.now)
        console().print(page)
    else:
        print("nothing differs in code, packages, data, resources and keys")
    for circumstance in report.not_compared:
        print(f"not compared: {circumstance}")
    for figure in report.figures:
        print(_sentence(figure))
    if not report.figures:
        print(f"no metric of {report.before} is in {report.now} too")
    elif report.identical:
        print(f"{report.now} is {report.before} again, bit for bit")


def _sentence(figure: "Figure") -> str:
    if figure.first is None:
        return f"{figure.metric}: equal at all {figure.steps} steps"
    values = f"{figure.before!r} before, {figure.now!r} now"
    return f"{figure.metric}: differs from step {figure.first} on ({values}), at most by {figure.largest:.1%}"
