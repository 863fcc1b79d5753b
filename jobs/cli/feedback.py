"""Commands about what an endpoint was asked and what people say of its answers: feedback, review."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.jobs.cli.arguments import AsJson, RunRef


def feedback(
    run: RunRef = "latest",
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--export",
            metavar="KIND FILE",
            help="write pairs (for align), chats (for finetune) or documents to FILE.jsonl[.zst]",
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="only exchanges of this time and later: 7d, 12h, 30m or 2026-11-27[T10:00]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what people say of a serving run's answers, by version and over time; write it as training data."""
    import json

    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.serving.feedback.export import export_feedback, parse_time
    from ropewalk.jobs.serving.feedback.read import enforce_retention, read, refuse_without_capture
    from ropewalk.jobs.serving.feedback.summary import summarize
    from ropewalk.jobs.serving.feedback.tables import lines_of

    opened = find_run(run)
    refuse_without_capture(opened)
    deleted = enforce_retention(opened)
    found = read(opened, parse_time(since) if since else None)
    written = export_feedback(opened, found, export[0], export[1]) if export else None
    summary = summarize(found)
    if as_json:
        made = {"run": opened.id, **summary.plain(), "deleted": deleted, "export": written}
        sys.stdout.write(json.dumps(made, default=str) + "\n")
        return
    from ropewalk.jobs.runs.show.tables import console

    for line in lines_of(opened.id, summary, written, deleted):
        console().print(line, soft_wrap=True)


def review(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    run: RunRef = "latest",
    reviewer: Annotated[str | None, typer.Option("--reviewer", metavar="NAME", help="who judges; unset: your user name")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="draw second answers here, with the token in $ROPEWALK_ENDPOINT_TOKEN; unset: where the run serves",
        ),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample/--no-sample", help="draw a second answer where only one was captured and the run serves")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="where pairs.jsonl and chats.jsonl go; unset: the run's feedback/review"),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free")] = 0,
) -> None:
    """Compare, rate and correct a serving run's answers, blind, in a browser: pairs for align, conversations for finetune."""
    from ropewalk.jobs.serving.feedback.review.serve import open_review

    with open_review(run, reviewer=reviewer, ask_at=endpoint, sample=sample, out=out, port=port) as opened:
        print(f"{opened.status}\n{opened.server.link()}", flush=True)
        if sys.stdin.isatty():
            print("The link works once; Enter prints a new one, Ctrl-C ends.", flush=True)
            opened.serve(lambda: print(opened.server.link(), flush=True))
        else:
            opened.serve()
    for line in opened.results:
        print(line)
