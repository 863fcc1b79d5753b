"""The command trace: from an answer back to its data, from a document on to the models that learnt it."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from ropewalk.jobs.cli.arguments import AsJson


def trace(
    number: Annotated[
        str, typer.Argument(metavar="ID", help="an answer: `id` of its body, or x-request-id; or the id of a training document")
    ],
    as_json: AsJson = False,
) -> None:
    """Name model, run, code, data and feedback behind an answer; or the models that learnt from a document."""
    from ropewalk.cluster.errors import ConfigError
    from ropewalk.cluster.run.directory import runs_root
    from ropewalk.jobs.runs.show.status import roots
    from ropewalk.jobs.serving.trace import feedback_behind, trace_answer, trace_document

    answer, document = trace_answer(number), trace_document(number)
    if answer is not None and answer.get("lineage"):
        answer["learnt_from_feedback"] = feedback_behind(answer["lineage"], runs_root())
    if answer is None and not document["places"]:
        places = ", ".join(map(str, roots()))
        raise ConfigError(
            f"{number!r}: no serving run under {places} gave such an answer, and no data set of a training run there has"
            " such a document; $ROPEWALK_RUNS names another folder of runs"
        )
    if as_json:
        print(json.dumps({"answer": answer, "document": document if document["places"] else None}, default=str))
        return
    for line in (*_answer_lines(answer), *_document_lines(document)):
        print(line)


def _answer_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    answer = found["answer"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer["time"]))
    yield f"answer {answer['answer_id'] or answer['id']}: {answer['outcome']} at {when} by {found['serve']}, {answer['replica']}"
    yield f"  model {answer['alias']} was {found['version']} = {found['model'] or 'gone'}"
    if found.get("weights"):
        yield f"  weights sha256 {found['weights']}"
    if found.get("problem"):
        yield f"  its version cannot be found: {found['problem']}"
    if found.get("lineage"):
        yield from _lineage_lines(found["lineage"], 1)
    for one in found.get("learnt_from_feedback") or ():
        counts = ", ".join(f"{count} {word}" for word, count in one["counts"].items() if count)
        yield f"  feedback of {one['watch']} by {one['run']}: {counts}"
    for said in found["feedback"]:
        words = ", ".join(f"{key} {said[key]}" for key in ("rating", "score", "correction", "comment") if key in said)
        yield f"  people said: {words}"


def _lineage_lines(one: Mapping[str, Any], depth: int) -> Iterator[str]:
    space = "  " * depth
    role = f"{one['role']}: " if "role" in one else ""
    if "run" in one:
        step = f"@{one['step']}" if one.get("step") is not None else ""
        yield f"{space}{role}run {one['run']}{step} ({one.get('job') or one.get('missing')})"
    else:
        yield f"{space}{role}directory {one.get('path')}, of which no run here tells"
    code = one.get("code") or {}
    if code:
        changed = f", {code.get('uncommitted')} files uncommitted (code.diff)" if code.get("dirty") else ""
        yield f"{space}  code {code.get('commit')}{changed}"
    for data in one.get("data") or ():
        digest = f" sha256 {data['sha256'][:16]}" if data.get("sha256") else ""
        yield f"{space}  data {data['path']}{digest}"
    for base in one.get("bases") or ():
        yield from _lineage_lines(base, depth + 1)


def _document_lines(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["places"]:
        return
    yield f"document {found['document']}:"
    for place in found["places"]:
        yield f"  lies in {place['data']}, {place['file']}, row {place['row']} ({place['split']})"
    if not found["runs"]:
        yield "  no run has learnt from it"
    for run in found["runs"]:
        yield f"  {run['run']} ({run['job']}, {run['steps']} steps) {run['how']}"
    for version in found["versions"]:
        aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
        yield f"  version {version['version']}{aliases} is {version['run']}"
