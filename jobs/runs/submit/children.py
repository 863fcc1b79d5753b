"""Runs that another run makes: each is written down once, found again whoever was killed, started once, and resumed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import AlreadyRunningError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import dated_label
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import GONE, settle
from ropewalk.jobs.runs.submit.submit import make_record, project_record, resume, start_with_needed

ORIGIN = ("created", "versions", "command", "code")  # of the parent's record: children run what was submitted with it


def find_child(parent: RunDir, step: str, name: str) -> RunDir | None:
    """The run that `parent` has made for a step, under this name. It lies beside the parent, and says whose it is."""
    for path in sorted(parent.path.parent.glob(f"{dated_label(name)}-*"), reverse=True):  # the newest are its own, as a rule
        if (path / "run.yaml").is_file():
            record = RunDir(path).record
            if (record.get("parent"), record.get("step")) == (parent.id, step):
                return RunDir(path)
    return None


def create_child(
    parent: RunDir, step: str, job: str, config: JobConfig, *, cluster: str, backend: Backend, outlives_parent: bool
) -> RunDir:
    """Write down the run of a step, with the parent's code and versions; it is not started."""
    origin = {key: parent.record[key] for key in ORIGIN if key in parent.record}
    record = {
        **make_record(job, config, cluster, origin),
        **project_record(config, parent.path.parent if backend.ships_code else None),
        **role_of(parent, step, outlives_parent=outlives_parent),
    }
    return RunDir.create(str(config.name), record, parent.path.parent)


def role_of(parent: RunDir, step: str, *, outlives_parent: bool) -> Mapping[str, Any]:
    """What the record of a child says of its place."""
    return {"parent": parent.id, "step": step, **({"outlives_parent": True} if outlives_parent else {})}


def start_child(backend: Backend, run: RunDir, needed: Sequence[RunDir]) -> None:
    """Start a child that was never started, or resume it where it is not under way and has not succeeded."""
    if not run.attempts():
        start_with_needed(backend, run, run.resources(), needed)
        return
    state = settle(run)
    under_way = not state.state.final and state.state is not RunState.UNKNOWN and state.word not in GONE
    if not under_way and state.state is not RunState.SUCCEEDED:
        with suppress(AlreadyRunningError):  # somebody else was faster
            resume(run, after=needed)
