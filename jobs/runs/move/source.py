"""The place that a run leaves: checks, the final checkpoint, and what the other place must know."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from typing import Any

from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.data_mounts import mount_location
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.moves import MOVING_TO, departed_to
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.move.files import Files
from ropewalk.jobs.runs.show.remote import Copy, write_to_original
from ropewalk.jobs.runs.show.status import final_outcome, settle
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.runs.submit.records import project_record, submission_record
from ropewalk.jobs.runs.submit.resume import resume

POLL_SECONDS = 0.5
RUNNING = frozenset({RunState.RUNNING, RunState.REQUEUED, RunState.PREEMPTED})


def files_of(run: RunDir) -> Files:
    """Return the files of a run of a cluster that this machine reaches."""
    return Files(backend_of(run), run.path.parent, run.id)


def describe(run: RunDir, to: str) -> dict[str, Any]:
    """Return what the target must know of a run that can move there. Raises ConfigError.

    If `to` is the run's own cluster: where it was to move, and the attempt that says so.
    """
    Copy(run).freshen()
    if to == run.record.get("cluster", "local"):
        return {"run": run.id, "departed_to": departed_to(run), "attempt": (run.attempts() or [0])[-1]}
    _refuse(run, to)
    stored, kind = run.record["config"], config_of(find_job(run.record["job"]))
    config = load_config(kind, {**stored, "resources": run.resources().model_dump(mode="json")}, ())
    mounts = run.record.get("mounts") or dict(backend_of(run).mounts)
    fetched = {item["path"]: item["name"] for item in run.record.get("fetched") or ()}
    inputs: list[dict[str, str]] = []

    def portable(key: str, value: str, _need: str) -> str:
        location = str(fetched.get(value) or mount_location(value, mounts))
        inputs.append({"key": key, "path": value, "location": location})
        return location

    moving = config.with_inputs(portable)
    prints = files_of(run).fingerprints([each["path"] for each in inputs if each["path"] not in fetched])
    return {
        "run": run.id,
        "job": run.record["job"],
        "config": moving.model_dump(mode="json"),
        "inputs": [{**each, "fingerprint": prints.get(each["path"])} for each in inputs if each["path"] not in fetched],
        "secrets": list(run.record.get("secrets") or ()),
        "packages": "packages" in run.record,
        "code": _code(run, config),
    }


def _refuse(run: RunDir, to: str) -> None:
    """Raise ConfigError, with the remedy, if the run cannot move."""
    state, job = settle(run), run.record["job"]
    if (elsewhere := departed_to(run)) and elsewhere != to:
        raise ConfigError(f"{run.id} has moved to {elsewhere}; give the command with the machine from which you moved it")
    if run.parent is not None:
        owner = f"{run.parent.record['job']} {run.parent.id}"
        raise ConfigError(f"{run.id} belongs to {owner}, which would start it again; cancel that, and submit it on {to}")
    if run.record.get("checkpoints") is False or view_of(run).children():
        raise ConfigError(f"{run.id}: a {job} run has no checkpoint of its own to move; cancel it, and submit it on {to}")
    if (path := (run.record["config"].get("checkpoint") or {}).get("path")) is not None:
        raise ConfigError(
            f"{run.id}: its checkpoints are outside of the run (checkpoint.path={path}); cancel it, and submit it on {to}"
        )
    if run.requests.get(MOVING_TO) == to and state.state is RunState.CANCELLED:
        return
    if state.state is RunState.PENDING:
        raise ConfigError(
            f"{run.id} has not started ({state.word or state.state}); `ropewalk cancel {run.id}`, and submit it on {to}"
        )
    if state.state not in RUNNING:
        remedy = "there is nothing to move"
        if state.state is not RunState.SUCCEEDED:
            remedy = f"`ropewalk resume {run.id}`, and move it when it runs"
        raise ConfigError(f"{run.id} does not run: {state.state}{f' ({state.reason})' if state.reason else ''}; {remedy}")


def _code(run: RunDir, config: JobConfig) -> dict[str, Any]:
    """Copy the code of a run that uses it in place, and return the changes of its record."""
    copied = (run.record.get("code") or {}).get("snapshot") or "project" in run.record
    if copied or not backend_of(run).shares_files:
        return {}
    root = run.path.parent
    directory = str(run.record.get("directory") or ".")
    if not os.path.isdir(directory):
        raise ConfigError(f"{run.id}: its code is in {directory}, which is not there any more; put it back")
    with chdir(directory):
        record = submission_record((), root)
        record["code"].pop("diff", None)
        return {"code": record["code"], "versions": record["versions"], **project_record(run.record["job"], config, root)}


def stop(run: RunDir, to: str) -> dict[str, Any]:
    """Ask a run for its final checkpoint, and wait until it has ended. Raises ConfigError if it ends otherwise."""
    backend = backend_of(run)
    if not departed_to(run):
        _request(run, to)
        while not (state := settle(run)).state.final:
            if not run.cancel_requested:
                backend.cancel(run)
            time.sleep(POLL_SECONDS)
        if state.state is not RunState.CANCELLED:
            raise ConfigError(f"{run.id} ended before it could stop: {state.state} ({state.reason}); there is nothing to move")
    outcome = final_outcome(run)
    return {"cause": outcome.cause if outcome is not None else ""}


def _request(run: RunDir, to: str | None) -> None:
    """Record where the run is to move, in its original too: the next command renews this machine's copy from that."""
    run.requests.put(MOVING_TO, to)
    write_to_original(run, run.requests.path.name)


def stay(run: RunDir, overrides: Sequence[str]) -> dict[str, Any]:
    """Start the next attempt of a run here that was to move, and has not started elsewhere. Raises RopewalkError."""
    _request(run, None)
    resume(run, overrides, moves_back=True)
    return {"attempt": run.attempts()[-1], "directory": str(run.path)}


def leave(run: RunDir, to: str, code: Mapping[str, Any]) -> dict[str, Any]:
    """Lock out all processes of the run here, and return its contents. `code`: as `describe` has returned it."""
    answer = files_of(run).ask("leave", to=to, code=code)
    Copy(run).freshen()
    return answer
