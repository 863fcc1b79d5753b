"""The commands `feedback` and `review` (ratings of answers), and `trace` (origin of an answer, models trained on a document)."""

import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ropewalk.jobs.cli.complete import AsJson, RunRef
from ropewalk.jobs.cli.json_output import print_json


def feedback(
    run: RunRef = "latest",
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--export", metavar="KIND FILE", help="write pairs (for align), chats (for finetune) or documents to FILE.jsonl[.zst]"
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="only exchanges since then: 7d, 12h, 30m or 2026-11-27[T10:00]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the ratings of a serving run's answers by version and over time; export them as training data."""
    from dataclasses import asdict

    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.serving.feedback.read import refuse_without_capture
    from ropewalk.jobs.serving.feedback.records import FOLDER
    from ropewalk.jobs.serving.feedback.retention import enforce_retention
    from ropewalk.jobs.serving.feedback.summary import summarize
    from ropewalk.jobs.serving.feedback.tables import lines_of
    from ropewalk.jobs.serving.feedback.training_data import export_feedback, parse_time

    serve_run = find_run(run)
    refuse_without_capture(serve_run)
    deleted = enforce_retention(serve_run)
    start = parse_time(since) if since else None
    exported = export_feedback(serve_run, start, export[0], export[1]) if export else None
    summary = summarize(serve_run.path / FOLDER, start)
    if as_json:
        print_json({"run": serve_run.id, **asdict(summary), "deleted": deleted, "export": exported})
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
            help="endpoint for second answers; its token is read from ROPEWALK_ENDPOINT_TOKEN; unset: the run's own",
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
        number, host = session.server.server_address[1], socket.gethostname()
        print(f"Open the link in a browser of this machine; elsewhere first run: ssh -NL {number}:localhost:{number} {host}")
        ends = "Enter prints a new one, Ctrl-C ends" if sys.stdin.isatty() else "Ctrl-C or SIGTERM ends"
        print(f"The link works once; {ends}, and writes the training data.", flush=True)
        if sys.stdin.isatty():
            session.serve(lambda: print(session.server.link(), flush=True))
        else:
            session.serve()
    for line in session.results:
        print(line)


def forget(
    run: RunRef,
    exchange: Annotated[str | None, typer.Option("--exchange", metavar="ID", help="an exchange, by request or answer id")] = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="NAME", help="all that a client (the name of a token) asked and rated")
    ] = None,
    containing: Annotated[
        str | None,
        typer.Option("--containing", metavar="TEXT", help="exchanges with this text in them, in feedback or in a second answer"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Erase exchanges of a serving run, with all feedback on them, and list the data and models that learnt from them."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.cluster.text import counted
    from ropewalk.jobs.runs.show.status import find_run
    from ropewalk.jobs.serving.feedback.read import refuse_without_capture
    from ropewalk.jobs.serving.forget import forget_exchanges

    if sum(option is not None for option in (exchange, client, containing)) != 1:
        raise ConfigError("name what to forget by one of --exchange, --client and --containing")
    serve_run = find_run(run)
    refuse_without_capture(serve_run)
    erased, trace = forget_exchanges(serve_run, exchange=exchange, client=client, containing=containing)
    if as_json:
        print_json({"run": serve_run.id, "erased": erased, **trace})
        return
    print(f"{serve_run.id}: erased {', '.join(counted(count, name) for name, count in erased.items() if count) or 'nothing'}")
    if trace["places"]:
        print("what was erased is also in these files and models; delete them, or make them anew:")
    for (data, file), count in Counter((where["data"], where["file"]) for where in trace["places"]).items():
        print(f"  {data if file == data else f'{data}, {file}'}: {counted(count, 'record')}")
    for line in _model_lines(trace):
        print(line)
    print("not searched: files of `feedback --export` and `review --out`, and what trackers were sent")


def trace(
    number: Annotated[
        str, typer.Argument(metavar="ID", help="id of an answer (`id` in its body, or x-request-id) or of a training document")
    ],
    as_json: AsJson = False,
) -> None:
    """Show the model, run, code, data and feedback behind an answer, or the models trained on a document."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.cluster.run.directory import runs_root
    from ropewalk.jobs.runs.show.status import roots
    from ropewalk.jobs.serving.trace import feedback_behind, trace_answer, trace_documents

    answer, document = trace_answer(number), trace_documents({number})
    if answer is not None and answer.get("lineage"):
        answer["learnt_from_feedback"] = feedback_behind(answer["lineage"], runs_root())
    if answer is None and not document["places"]:
        folders = ", ".join(map(str, roots()))
        raise ConfigError(
            f"{number!r}: neither an answer of a serving run under {folders} nor a document in the data set of a training"
            " run there; set $ROPEWALK_RUNS to search another folder of runs"
        )
    if as_json:
        located = {"document": number, **document} if document["places"] else None
        print_json({"answer": answer, "document": located})
        return
    for line in (*_answer_lines(answer), *_document_lines(number, document)):
        print(line)


def _answer_lines(trace: Mapping[str, Any] | None) -> Iterator[str]:
    if trace is None:
        return
    answer = trace["answer"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer["time"]))
    yield f"answer {answer['answer_id'] or answer['id']}: {answer['outcome']} at {when} by {trace['serve']}, {answer['replica']}"
    yield f"  model {answer['alias']} was {trace['version']} = {trace['model'] or 'gone'}"
    if trace.get("weights"):
        yield f"  weights sha256 {trace['weights']}"
    if trace.get("problem"):
        yield f"  version not found: {trace['problem']}"
    if trace.get("lineage"):
        yield from _lineage_lines(trace["lineage"], 1)
    for entry in trace.get("learnt_from_feedback") or ():
        counts = ", ".join(f"{count} {name}" for name, count in entry["counts"].items() if count)
        yield f"  feedback of {entry['watch']} by {entry['run']}: {counts}"
    for rating in trace["feedback"]:
        values = ", ".join(f"{key} {rating[key]}" for key in ("rating", "score", "correction", "comment") if key in rating)
        yield f"  rated: {values}"


def _lineage_lines(source: Mapping[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    role = f"{source['role']}: " if "role" in source else ""
    if "run" in source:
        step = f"@{source['step']}" if source.get("step") is not None else ""
        yield f"{indent}{role}run {source['run']}{step} ({source.get('job') or source.get('missing')})"
    else:
        yield f"{indent}{role}directory {source.get('path')}, not the output of a run here"
    code = source.get("code") or {}
    if code:
        changed = f", {code.get('uncommitted')} files uncommitted (code.diff)" if code.get("dirty") else ""
        yield f"{indent}  code {code.get('commit')}{changed}"
    for data in source.get("data") or ():
        digest = f" sha256 {data['sha256'][:16]}" if data.get("sha256") else ""
        yield f"{indent}  data {data['path']}{digest}"
    for base in source.get("bases") or ():
        yield from _lineage_lines(base, depth + 1)


def _document_lines(number: str, trace: Mapping[str, Any]) -> Iterator[str]:
    if not trace["places"]:
        return
    yield f"document {number}:"
    for location in trace["places"]:
        yield f"  in {location['data']}, {location['file']}, row {location['row']} ({location['split']})"
    if not trace["runs"]:
        yield "  no run was trained on it"
    yield from _model_lines(trace)


def _model_lines(trace: Mapping[str, Any]) -> Iterator[str]:
    for run in trace["runs"]:
        yield f"  {run['run']} ({run['job']}, {run['steps']} steps) {run['how']}"
    for version in trace["versions"]:
        aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
        yield f"  version {version['version']}{aliases} is {version['run']}"
