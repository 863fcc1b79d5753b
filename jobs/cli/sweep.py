"""The commands `best` (a sweep's best configuration) and `confirm` (test it with new seeds)."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.complete import AsJson
from ropewalk.jobs.cli.json_output import print_json

SweepRef = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help="a sweep: its id or a unique prefix, its name or directory, or latest",
        autocompletion=complete.runs,
    ),
]


def best(
    sweep_ref: SweepRef,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.yaml]", help="file to write; unset: print it")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a sweep's best configuration as a job file for `ropewalk run JOB -c`."""
    from ropewalk.jobs.orchestration.sweep.report import best as winner
    from ropewalk.jobs.orchestration.sweep.report.results import find_sweep, read_sweep
    from ropewalk.jobs.runs.show.remote import freshen

    results = read_sweep(freshen(find_sweep(sweep_ref)))
    if file:
        winner.write_job_file(results, file)
    if as_json:
        print_json({**winner.plain(results), "file": str(file) if file else None})
    else:
        sys.stdout.write(str(file) + "\n" if file else winner.job_file(results).rstrip("\n") + "\n")


def confirm(
    sweep_ref: SweepRef,
    seeds: Annotated[int, typer.Option("--seeds", min=3, max=100, metavar="N", help="number of new seeds per configuration")] = 3,
    against: Annotated[
        Literal["runner-up", "base"], typer.Option("--against", help="configuration to compare the best one with")
    ] = "runner-up",
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CLUSTER", help="cluster; unset: the one of the trials", autocompletion=complete.clusters),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a sweep's best configuration again with new seeds to test whether it wins. Exit 1 if that stays open."""
    from ropewalk.cluster.errors import EXIT_INTERRUPTED
    from ropewalk.jobs.orchestration.sweep.report import confirm as again
    from ropewalk.jobs.orchestration.sweep.report.confirm_report import await_runs, confirmation, confirmation_page
    from ropewalk.jobs.orchestration.sweep.report.results import find_sweep, read_sweep, trials_cluster
    from ropewalk.jobs.runs.show.remote import freshen
    from ropewalk.jobs.runs.show.tables import console

    results, progress = read_sweep(freshen(find_sweep(sweep_ref))), console(stderr=True)
    candidates = again.candidates(results, against)
    command = ["ropewalk", *sys.argv[1:]]
    again.ensure_runs(results, candidates, again.seeds_of(results, seeds), on or trials_cluster(results.run), command)
    try:
        await_runs(
            [run for candidate in candidates for run in candidate.runs.values()],
            lambda line: progress.print(line, soft_wrap=True),
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"\nthe runs keep running; `ropewalk confirm {results.run.id}` waits for them again\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    result = confirmation(results, candidates)
    if as_json:
        print_json(result)
    else:
        console().print(confirmation_page(results, result))
        console().print(result["words"], style="bold", markup=False, soft_wrap=True)
    if result["real"] is None:
        raise typer.Exit(1)
