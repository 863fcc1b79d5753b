"""Child runs: created once, found again after a crash of the parent, started once, and resumed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.submission import Dependency
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import AlreadyRunningError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import dated_label
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import GONE, settle
from ropewalk.jobs.runs.submit.records import child_packages_record, make_record, needs_own_code, project_record
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.submit import start_with_needed

ORIGIN = ("created", "versions", "command", "code", "directory")  # of the parent's record: children run the same code


def find_child(parent: RunDir, step: str, name: str) -> RunDir | None:
    """Return the run that `parent` has created for a step under this name, or None. It is in the same folder as the parent."""
    return newest_run(parent.path.parent, name, parent=parent.id, step=step)


def newest_run(root: Path, name: str, **keys: str) -> RunDir | None:
    """Return the newest run under a name whose record has these values, or None."""
    for path in sorted(root.glob(f"{dated_label(name)}-*"), reverse=True):  # usually among the newest
        if (path / "run.yaml").is_file() and keys.items() <= {key: RunDir(path).record.get(key) for key in keys}.items():
            return RunDir(path)
    return None


def create_child(
    parent: RunDir, step: str, job: str, config: JobConfig, *, cluster: str, backend: Backend, outlives_parent: bool
) -> RunDir:
    """Create the run of a step, with the parent's code and versions, without starting it."""
    origin = {key: parent.record[key] for key in ORIGIN if key in parent.record}
    if config.project() is None and needs_own_code(job, config) and "project" in parent.record:
        project = {"project": parent.record["project"]}
    else:
        project = project_record(job, config, parent.path.parent if backend.ships_code else None)
    record = {
        **make_record(job, config, cluster, origin),
        **project,
        **child_packages_record(backend, config, parent),
        **child_keys(parent, step, outlives_parent=outlives_parent),
    }
    return RunDir.create(str(config.name), record, parent.path.parent)


def child_keys(parent: RunDir, step: str, *, outlives_parent: bool) -> Mapping[str, Any]:
    """Return the keys of a child's record that refer to its parent."""
    return {"parent": parent.id, "step": step, **({"outlives_parent": True} if outlives_parent else {})}


def start_child(backend: Backend, run: RunDir, needed: Sequence[Dependency]) -> None:
    """Start a child, or resume it if it is neither active nor succeeded."""
    if not run.attempts():
        start_with_needed(backend, run, run.resources(), needed)
        return
    state = settle(run)
    is_active = not state.state.final and state.state is not RunState.UNKNOWN and state.word not in GONE
    if not is_active and state.state is not RunState.SUCCEEDED:
        with suppress(AlreadyRunningError):  # another process was faster
            resume(run, after=needed)
