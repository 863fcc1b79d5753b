"""The commands `feedback` and `review`: ratings of a serving run's answers."""

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
        str | None, typer.Option("--since", help="only exchanges since then: 7d, 12h, 30m or 2026-11-27[T10:00]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the ratings of a serving run's answers by version and over time; export them as training data."""
    import json

    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.serving.feedback.export import export_feedback, parse_time
    from ropewalk.jobs.serving.feedback.read import enforce_retention, read, refuse_without_capture
    from ropewalk.jobs.serving.feedback.summary import summarize
    from ropewalk.jobs.serving.feedback.tables import lines_of

    serve_run = find_run(run)
    refuse_without_capture(serve_run)
    deleted = enforce_retention(serve_run)
    exchanges = read(serve_run, parse_time(since) if since else None)
    exported = export_feedback(serve_run, exchanges, export[0], export[1]) if export else None
    summary = summarize(exchanges)
    if as_json:
        values = {"run": serve_run.id, **summary.plain(), "deleted": deleted, "export": exported}
        sys.stdout.write(json.dumps(values, default=str) + "\n")
        return
    from ropewalk.jobs.runs.show.tables import console

    for line in lines_of(serve_run.id, summary, exported, deleted):
        console().print(line, soft_wrap=True)


def review(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    run: RunRef = "latest",
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", metavar="NAME", help="name of the reviewer; unset: your user name")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="endpoint for second answers, with the token in $ROPEWALK_ENDPOINT_TOKEN; unset: the run's own",
        ),
    ] = None,
    sample: Annotated[
        bool,
        typer.Option("--sample/--no-sample", help="generate a second answer if only one was captured and the run is serving"),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="directory for pairs.jsonl and chats.jsonl; unset: the run's feedback/review"),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="port of the page; 0: any free port")] = 0,
) -> None:
    """Compare, rate and correct a serving run's answers, blind, in a browser: pairs for align, conversations for finetune."""
    from ropewalk.jobs.serving.feedback.review.serve import open_review

    with open_review(run, reviewer=reviewer, ask_at=endpoint, sample=sample, out=out, port=port) as session:
        print(f"{session.status}\n{session.server.link()}", flush=True)
        if sys.stdin.isatty():
            print("The link works once; Enter prints a new one, Ctrl-C ends.", flush=True)
            session.serve(lambda: print(session.server.link(), flush=True))
        else:
            session.serve()
    for line in session.results:
        print(line)
