"""Submit runs: configure them, write their run directories, and hand these to a backend; resume and scale them later."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend, load_profile
from ropewalk.cluster.backends.submission import end_unstarted, failed_runs
from ropewalk.cluster.config import JobConfig, Resources
from ropewalk.cluster.config_reader import apply_override, load_config, read_yaml
from ropewalk.cluster.errors import AlreadyRunningError, ConfigError, RopewalkError
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.registry import config_of, find_job, view_class
from ropewalk.jobs.runs.show.remote import write_there
from ropewalk.jobs.runs.show.status import final_outcome, find_run, settle
from ropewalk.jobs.runs.show.view import RunView, view_of
from ropewalk.jobs.runs.submit.combinations import combinations
from ropewalk.jobs.runs.submit.provenance import masked, masked_word, versions
from ropewalk.jobs.runs.submit.snapshot import checkout, code_of, code_state, project_of, take_snapshot

SIDECARS = ("ropewalk.jobs.runs.mirror.sidecar",)
TRACKERS_SIDECAR, TRACKERS = "ropewalk.jobs.runs.mirror.trackers", "ropewalk.trackers"  # the latter: entry points


def configure(job: str, file: Path | None, overrides: Sequence[str]) -> JobConfig:
    """Make the frozen configuration of a job, from its file and overrides. Raises ConfigError."""
    kind = config_of(find_job(job))
    return load_config(kind, read_yaml(file) if file else {}, overrides)


def configure_each(job: str, file: Path | None, overrides: Sequence[str], each: Sequence[str]) -> list[JobConfig]:
    """Make a configuration for each combination of `--each`. Raises ConfigError."""
    kind, values = config_of(find_job(job)), read_yaml(file) if file else {}
    for word in overrides:
        apply_override(values, word)
    return [load_config(kind, values, own) for own in combinations(each)]


def make_record(job: str, config: JobConfig, cluster_name: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Make the content of run.yaml. Secrets are masked, and the environment is not recorded."""
    spec = find_job(job)
    return {
        "job": spec.name,
        "entry": spec.entry,
        "engine": (config.preferred_engine() or spec.engine).value,
        "preload": list(spec.preload),
        "sidecars": [*SIDECARS, *([TRACKERS_SIDECAR] if config.trackers else [])],
        "config": masked(config.model_dump(mode="json")),
        "resources": config.resources.model_dump(mode="json"),
        "cluster": cluster_name,
        **masked(config.extra_record(cluster_name)),
        **origin,
    }


def origin_of(command: Sequence[str], root: Path | None = None) -> dict[str, Any]:
    """When, by which command, with which versions and from which code runs are submitted: what all of a submission share.

    The code is copied under `root`; without a root the runs use the code where it lies.
    """
    place, folder, is_program = checkout()
    not_code = [runs_root(), *([root] if root else [])]
    code = (
        {**code_of(place, root, not_code), "folder": folder, "is_program": is_program}
        if place and root
        else code_state(place, not_code)
    )
    words = [masked_word(word) for word in command]
    return {"created": time.time(), "versions": versions(), "command": words, "code": code, "directory": str(Path.cwd())}


def project_record(config: JobConfig, root: Path | None) -> dict[str, Any]:
    """What run.yaml says of the user's own code that a run needs; it is copied under `root`, or stays where it is."""
    wanted = config.project()
    if wanted is None or root is None or not wanted[1].ship:
        return {}
    directory, code = wanted
    place, folder = project_of(Path(directory), Path(code.root) if code.root else None)
    not_code = [path.resolve() for path in (runs_root(), root)]
    snapshot, left_out = take_snapshot(place, root, not_code, code.exclude)
    if snapshot is None:
        raise ConfigError(f"code: {place} cannot be copied for the run: {left_out[0]}; mend that, or set code.ship=false")
    return {"project": {"root": str(place), "snapshot": snapshot, "folder": folder, "left_out": left_out}}


def unwritten_run(config: JobConfig, record: Mapping[str, Any]) -> RunDir:
    """Make the run of a dry run, which has a record and nothing on disk."""
    path = runs_root() / f"{config.name or record['job']}-dry-run"
    return RunDir(path, record={"run": path.name, **record})


def render(job: str, configs: Sequence[JobConfig], cluster_name: str) -> str:
    """Render the script or manifest that a submission would hand over, after the same checks, and the estimate of its start.

    Of many runs it is that of their array where the backend has arrays, else the first run's.
    """
    backend = load_backend(cluster_name)
    configs = [config.resolved() for config in configs]
    _check_inputs(backend, configs)
    origin, resources = origin_of(()), configs[0].resources
    runs = [unwritten_run(config, make_record(job, config, cluster_name, origin)) for config in configs]
    script = "".join(
        f"# {heading}\n{backend.render(run, run.resources()).rstrip()}\n\n" for run, heading in view_of(runs[0]).render_needed()
    )
    script += f"{backend.render_many(runs, resources).rstrip()}\n"
    told = (backend.resources_notice(resources), " ".join(backend.start_estimate(runs[0], resources).split()))
    return script + "".join(f"# {sentence}\n" for sentence in told if sentence)  # comments, so that the whole stays a script


def submit(
    job: str, config: JobConfig, cluster_name: str = "local", *, after: Sequence[RunDir] = (), command: Sequence[str] = ()
) -> RunDir:
    """Create a run and start its first attempt. Raises RopewalkError; a bad configuration leaves nothing behind."""
    return submit_many(job, [config], cluster_name, after=after, command=command)[0]


def submit_many(
    job: str,
    configs: Sequence[JobConfig],
    cluster_name: str = "local",
    *,
    after: Sequence[RunDir] = (),
    at_once: int | None = None,
    command: Sequence[str] = (),
) -> list[RunDir]:
    """Create and submit many runs together, of which at most `at_once` run at a time. Raises RopewalkError."""
    backend = load_backend(cluster_name)
    if at_once is not None and at_once < len(configs):
        backend.check_waiting()
    runs = write_down(backend, job, configs, cluster_name, command)
    if view_class(job).submit_needed is RunView.submit_needed:
        start(backend, runs, configs[0].resources, [other.id for other in after], at_once)
    else:
        for run in runs:
            start_with_needed(backend, run, configs[0].resources, after)
    return runs


def start(
    backend: Backend, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
) -> None:
    """Hand run directories to their backend. Raises RopewalkError, which each of the runs records."""
    try:
        if len(runs) == 1:
            backend.submit(runs[0], resources, after)
        else:
            backend.submit_many(runs, resources, after, at_once)
    except RopewalkError as error:
        for run in runs:
            run.event("submit_failed", error=str(error))
        raise


def start_with_needed(backend: Backend, run: RunDir, resources: Resources, after: Sequence[RunDir]) -> None:
    """Start a run once the runs `after` and those that its job needs have succeeded; what it needs is submitted first.

    Where one of them has failed already, it is written down that the run never starts. Raises RopewalkError, which the run
    records.
    """
    others = list(after)
    try:
        others += view_of(run).submit_needed(after)
        if not (failed := failed_runs(others)):
            backend.submit(run, resources, [other.id for other in others])
    except RopewalkError as error:
        if not (failed := failed_runs(others)):  # else it failed while the run was on its way
            if not isinstance(error, AlreadyRunningError):
                run.event("submit_failed", error=str(error))
            raise
    if failed:
        end_unstarted(run, resources, failed)


def write_down(
    backend: Backend, job: str, configs: Sequence[JobConfig], cluster_name: str, command: Sequence[str]
) -> list[RunDir]:
    """The run directories of what is about to be submitted. Raises RopewalkError."""
    configs = [config.resolved() for config in configs]
    _check_inputs(backend, configs)
    backend.check_access()
    other = configs[0].children_cluster()
    root = _root_of(cluster_name) if other is None else _root_of(other) or _root_of(cluster_name)
    root = root or runs_root()
    backends = [backend, *([load_backend(other)] if other else [])]
    shipped_to = root if any(one.ships_code for one in backends) else None
    origin = origin_of(command, shipped_to)
    project = project_record(configs[0], shipped_to)  # those of one submission stand in one directory
    records = [{**make_record(job, config, cluster_name, origin), **project} for config in configs]
    return RunDir.create_all([config.name or job for config in configs], records, root)


def _root_of(cluster_name: str) -> Path | None:
    named = load_profile(cluster_name).options.get("runs")
    return Path(named).expanduser() if named else None


def _check_inputs(backend: Backend, configs: Sequence[JobConfig]) -> None:
    """Check that the cluster may have such nodes, and that inputs exist. Raises RopewalkError.

    Inputs of a cluster whose files this machine does not see are checked by the run itself.
    """
    for resources in (configs[0].resources, *configs[0].children_resources()):
        backend.check_resources(resources)
    if configs[0].needs_others:
        backend.check_waiting()
    if configs[0].trackers:
        from importlib.metadata import entry_points  # it looks through every package that is installed

        known = {point.name for point in entry_points(group=TRACKERS)}
        if missing := sorted(set(configs[0].trackers) - known):
            raise ConfigError(f"trackers: there is no {', '.join(missing)}; installed: {', '.join(sorted(known)) or 'none'}")
    if backend.shares_files:
        for config in configs:
            config.preflight(backend.path_here)


def resume(run: RunDir, overrides: Sequence[str] = (), after: Sequence[RunDir] = ()) -> None:
    """Start a new attempt of a run, with other resources if overrides name some, once the runs `after` have succeeded.

    What it waits for is resumed too. Raises RopewalkError.
    """
    if settle(run).state is RunState.SUCCEEDED:
        raise ConfigError(f"{run.id} has succeeded, there is nothing to resume; submit a new run instead")
    foreign = [word for word in overrides if not word.startswith("resources.")]
    if foreign:
        raise ConfigError(f"{foreign[0]!r}: a run's configuration never changes, only its resources may: resources.KEY=VALUE")
    config = load_config(JobConfig, {"resources": run.resources().model_dump(mode="json")}, overrides)
    was_cancelled, wanted_nodes = run.cancel_requested, run.wanted_nodes
    run.withdraw_cancel()
    run.withdraw_nodes()
    try:
        start_with_needed(load_backend(run.record["cluster"]), run, config.resources, after)
    except RopewalkError:
        if was_cancelled:
            run.request_cancel()
        if wanted_nodes:
            run.request_nodes(wanted_nodes)
        raise
    run.event("resumed_by_user", resources=config.resources.model_dump(mode="json"))


def resume_as(job: str, file: Path | None, overrides: Sequence[str], ref: str) -> RunDir:
    """Resume a run of this job with the configuration that it has (`run JOB --resume RUN`). Raises ConfigError."""
    run = find_run(ref)
    if run.record["job"] != find_job(job).name:
        raise ConfigError(
            f"--resume {ref}: {run.id} is a {run.record['job']} run, not a {job} run; use `ropewalk resume {run.id}`"
        )
    if file is not None:
        raise ConfigError(f"--resume {ref}: a run's configuration never changes; leave out -c {file}, or start a new {job} run")
    resume(run, overrides)
    return run


def scale(run: RunDir, nodes: int) -> None:
    """Ask a live elastic run to change its number of nodes. Raises ConfigError."""
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
    if not write_there(run, run.requests.path.name):  # else the run's own supervisor records it
        run.event("scaled_by_user", nodes=nodes)
