"""Commands that look into a live run: `stacks`, `profile`, `memory`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json


def stacks(
    run_ref: RunRef,
    threads: Annotated[bool, typer.Option("--threads", help="show all threads, not only the main one")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where all processes of a live run are: equal stacks merged, the rarest first. Programs of your own too."""
    from ropewalk.jobs.runs.inspect.ask import ask_agents
    from ropewalk.jobs.runs.inspect.pages import missing_words
    from ropewalk.jobs.runs.inspect.stacks import merge_stacks, programs_only, stacks_page
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.show.tables import console
    from ropewalk.jobs.runs.show.view import view_of

    run = find_run(run_ref)
    answers = ask_agents(run)
    processes = [{"node": node, **process} for node, answer in answers.by_number.items() for process in answer["processes"]]
    groups = merge_stacks(programs_only(processes) if view_of(run).shows_output else processes)
    if as_json:
        listed = [{"frames": group.frames, "text": group.text, "processes": group.processes} for group in groups]
        print_json({"run": run.id, "attempt": answers.request.attempt, "groups": listed, "missing_nodes": answers.missing})
        return
    console().print(stacks_page(groups, threads=threads), soft_wrap=True)
    _warn(missing_words(answers, "node"))


def profile(
    run_ref: RunRef,
    steps: Annotated[int, typer.Option("--steps", min=1, max=100, metavar="N", help="number of steps")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json.gz", help="merged trace; unset: in the run directory")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Profile all ranks of a live run at the same steps, and merge their traces into one file for ui.perfetto.dev."""
    from ropewalk.jobs.runs.inspect.ask import ask_ranks
    from ropewalk.jobs.runs.inspect.pages import missing_words, profile_page
    from ropewalk.jobs.runs.inspect.traces import merge_traces
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.show.tables import console

    run = find_run(run_ref)
    answers = ask_ranks(run, "profile", steps, _note)
    target = out or answers.folder / "trace.json.gz"
    merged = merge_traces({rank: answers.folder / answer["trace"] for rank, answer in answers.by_number.items()}, target)
    if as_json:
        head = {"run": run.id, "attempt": answers.request.attempt, "trace": str(target), "missing_ranks": answers.missing}
        print_json({**head, **asdict(merged)})
        return
    console().print(profile_page(merged))
    _warn(missing_words(answers, "rank"))
    print(target)


def memory(run_ref: RunRef, as_json: AsJson = False) -> None:
    """Show the memory of all ranks of a live run by kind: parameters, gradients, optimizer, and the rest."""
    from ropewalk.jobs.runs.inspect.ask import ask_ranks
    from ropewalk.jobs.runs.inspect.pages import memory_page, missing_words
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.runs.show.tables import console

    run = find_run(run_ref)
    answers = ask_ranks(run, "memory", 0, _note)
    if as_json:
        head = {"run": run.id, "attempt": answers.request.attempt, "missing_ranks": answers.missing}
        print_json({**head, "ranks": list(answers.by_number.values())})
        return
    console().print(memory_page(answers.by_number))
    _warn(missing_words(answers, "rank"))


def _note(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def _warn(message: str) -> None:
    if message:
        _note(f"warning: {message}")
