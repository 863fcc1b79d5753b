"""The command `trace`: the origin of an answer, or the models trained on a document."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from ropewalk.jobs.cli.arguments import AsJson


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
    from ropewalk.jobs.serving.trace import feedback_behind, trace_answer, trace_document

    answer, document = trace_answer(number), trace_document(number)
    if answer is not None and answer.get("lineage"):
        answer["learnt_from_feedback"] = feedback_behind(answer["lineage"], runs_root())
    if answer is None and not document["places"]:
        folders = ", ".join(map(str, roots()))
        raise ConfigError(
            f"{number!r}: neither an answer of a serving run under {folders} nor a document in the data set of a training"
            " run there; set $ROPEWALK_RUNS to search another folder of runs"
        )
    if as_json:
        print(json.dumps({"answer": answer, "document": document if document["places"] else None}, default=str))
        return
    for line in (*_answer_lines(answer), *_document_lines(document)):
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


def _document_lines(trace: Mapping[str, Any]) -> Iterator[str]:
    if not trace["places"]:
        return
    yield f"document {trace['document']}:"
    for location in trace["places"]:
        yield f"  in {location['data']}, {location['file']}, row {location['row']} ({location['split']})"
    if not trace["runs"]:
        yield "  no run was trained on it"
    for run in trace["runs"]:
        yield f"  {run['run']} ({run['job']}, {run['steps']} steps) {run['how']}"
    for version in trace["versions"]:
        aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
        yield f"  version {version['version']}{aliases} is {version['run']}"
