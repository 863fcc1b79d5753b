"""Resumption of runs with other keys or code, and scaling of elastic ones."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.backends.submission import Dependency, next_attempt
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import AlreadyRunningError, ConfigError, RopewalkError, SubmissionInDoubtError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.moves import moved_to
from ropewalk.cluster.run.origin import current_origin
from ropewalk.cluster.run.siblings import sibling_elsewhere
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.show.remote import write_to_original
from ropewalk.jobs.runs.show.status import GONE, final_outcome, find_run, settle
from ropewalk.jobs.runs.submit.inputs import Inputs
from ropewalk.jobs.runs.submit.once import submit_once
from ropewalk.jobs.runs.submit.provenance import mask_secrets
from ropewalk.jobs.runs.submit.records import packages_record, project_record, submission_record
from ropewalk.jobs.runs.submit.submit import check_inputs, start_with_needed

FIXED_KEYS = ("data", "model", "seed")  # of a run: its checkpoints and the order of its samples depend on them


def resume(
    run: RunDir,
    overrides: Sequence[str] = (),
    after: Sequence[Dependency] = (),
    *,
    new_code: bool = False,
    moves_back: bool = False,
) -> None:
    """Start a new attempt of a run, once `after` is met, optionally with other resources and keys, and with the current code.

    Runs that it depends on are resumed too. `moves_back`: it has left for another cluster, and has not started there. Raises
    RopewalkError.
    """
    if not moves_back and (cluster := moved_to(run)):
        remedy = "resume it from the machine from which it was moved"
        raise ConfigError(
            f"{run.id} has moved to {cluster}; {remedy}, or give that machine's command `move` again, if it was cut off"
        )
    if sibling := sibling_elsewhere(run):
        raise ConfigError(
            f"{run.id}: {sibling.run} has started on {sibling.cluster} instead; to run this one too, submit it again"
        )

    def start(_: Sequence[RunDir]) -> None:
        _resume(run, overrides, after, new_code=new_code)

    def complete(_: RunDir) -> None:
        with suppress(AlreadyRunningError):
            start([])

    if (origin := current_origin()) is not None:
        submit_once(origin, run.path.parent, lambda: [run], start, complete)
    else:
        start([])


def _resume(run: RunDir, overrides: Sequence[str], after: Sequence[Dependency], *, new_code: bool) -> None:
    state = settle(run)
    if state.state is RunState.SUCCEEDED:
        longer = (
            f" start_from.run={run.id} steps=MORE" if "start_from" in config_of(find_job(run.record["job"])).model_fields else ""
        )
        remedy = f"submit a new run instead: `ropewalk run {run.record['job']} ...{longer}`"
        raise ConfigError(f"{run.id} has succeeded, there is nothing to resume; {remedy}")
    backend, changes_before = backend_of(run), run.changes
    config, changes = _changes(run, backend, overrides, new_code=new_code)
    if changes and not (state.state.final or state.state is RunState.UNKNOWN or state.word in GONE):
        raise AlreadyRunningError(run.id, f"an active attempt ({state.state})")
    was_cancelled, wanted_nodes, attempt = run.cancel_requested, run.wanted_nodes, next_attempt(run)
    run.withdraw_cancel()
    run.withdraw_nodes()
    if changes:
        if diff := changes.get("code", {}).pop("diff", ""):
            (run.path / f"code.{attempt:04d}.diff").write_text(diff)
        run.write_changes([*changes_before, {"attempt": attempt, **changes}])
    try:
        start_with_needed(backend, run, config.resources, after)
    except RopewalkError as error:
        if changes and not isinstance(error, SubmissionInDoubtError):
            run.write_changes(changes_before)
        if was_cancelled:
            run.request_cancel()
        if wanted_nodes:
            run.request_nodes(wanted_nodes)
        raise
    run.event("resumed_by_user", resources=config.resources.model_dump(mode="json"))
    if changes:
        changed = [*changes["config"], *(["code"] if new_code else [])]
        run.event("changed_by_user", attempt=attempt, changed=", ".join(changed))


def _changes(run: RunDir, backend: Backend, overrides: Sequence[str], *, new_code: bool) -> tuple[JobConfig, dict[str, Any]]:
    """Return the configuration of a run's next attempt, and the changes of its record. Raises ConfigError."""
    plain = {"resources": run.resources().model_dump(mode="json")}
    others = [override for override in overrides if not override.startswith("resources.")]
    if not others and not new_code:
        return load_config(JobConfig, plain, overrides), {}
    refuse_fixed(run.record["job"], others)
    if not backend.shares_files:
        raise ConfigError(f"{run.id}: its files are not mounted here, so only resources.KEY=VALUE can change; submit a new run")
    stored = run.record["config"]
    config = load_config(config_of(find_job(run.record["job"])), {**stored, **plain}, overrides)
    if others:
        inputs = Inputs(backend, run.path.parent)
        config = inputs.pin(config)[0].resolved()
        inputs.fetch()
        check_inputs(backend, [config], backend.path_here)
    values = mask_secrets(config.model_dump(mode="json"))
    changed = {key: value for key, value in values.items() if key != "resources" and value != stored.get(key)} if others else {}
    changes: dict[str, Any] = {"config": changed}
    if (required := dict(config.required_environment())) != run.record.get("required_environment", {}):
        changes["required_environment"] = required
    if config.packages is not None and "packages" in changed:
        changes |= packages_record(backend, config, run.path.parent)
    if (names := list(config.secret_names())) != run.record.get("secrets", []):
        changes["secrets"] = names
    if new_code:
        root = run.path.parent if backend.ships_code else None
        changes |= {key: value for key, value in submission_record((), root).items() if key in ("code", "versions", "directory")}
        changes |= project_record(run.record["job"], config, root)
    return config, changes


def refuse_fixed(job: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError if an override changes a key that a run keeps."""
    for override in overrides:
        if (key := re.split(r"[.=]", override)[0]) in FIXED_KEYS:
            remedy = f"submit a new run: ropewalk submit {job} ... {override}"
            raise ConfigError(f"{override}: the {key} of a run cannot change, since its checkpoints depend on it; {remedy}")


def resume_as(job: str, file: Path | None, overrides: Sequence[str], ref: str) -> RunDir:
    """Resume a run of this job with the configuration that it has (`run JOB --resume RUN`). Raises ConfigError."""
    run = find_run(ref)
    if run.record["job"] != find_job(job).name:
        raise ConfigError(
            f"--resume {ref}: {run.id} is a {run.record['job']} run, not a {job} run; use `ropewalk resume {run.id}`"
        )
    if file is not None:
        raise ConfigError(f"--resume {ref}: leave out -c {file}, and name the keys to change as KEY=VALUE")
    resume(run, overrides)
    return run


def scale(run: RunDir, nodes: int) -> None:
    """Request another number of nodes for a running elastic run. Raises ConfigError."""
    if (outcome := final_outcome(run)) is not None:
        goes_on = outcome.state is not RunState.SUCCEEDED
        remedy = f"; `ropewalk resume {run.id} resources.nodes={nodes}` restarts it with as many" if goes_on else ""
        raise ConfigError(f"{run.id} is over: {outcome.state}{remedy}")
    allowed = run.resources().nodes
    if not allowed.elastic:
        remedy = f"cancel it, then `ropewalk resume {run.id} resources.nodes=1..{max(nodes, allowed.most)}`"
        raise ConfigError(f"{run.id} has resources.nodes={allowed}, a fixed number; {remedy}")
    if not allowed.least <= nodes <= allowed.most:
        raise ConfigError(f"{nodes} nodes: {run.id} has resources.nodes={allowed}; choose one of these")
    run.request_nodes(nodes)
    if not write_to_original(run, run.requests.path.name):  # otherwise the run's supervisor records the event
        run.event("scaled_by_user", nodes=nodes)
