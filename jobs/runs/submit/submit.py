"""Submission of runs."""

import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend, load_profile
from ropewalk.cluster.backends.recovery import has_agents
from ropewalk.cluster.backends.submission import Dependency, broken_dependencies, end_unstarted
from ropewalk.cluster.config import JobConfig, Resources
from ropewalk.cluster.config_reader import apply_override, load_config, problems_of, read_job_file, read_yaml
from ropewalk.cluster.errors import AlreadyRunningError, ConfigError, RopewalkError, SubmissionInDoubtError
from ropewalk.cluster.input_paths import PathView
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.origin import current_origin
from ropewalk.jobs.registry import JOBS, config_of, find_job, view_class
from ropewalk.jobs.runs.show.view import RunView, view_of
from ropewalk.jobs.runs.submit.combinations import combinations
from ropewalk.jobs.runs.submit.gpus import set_gpus
from ropewalk.jobs.runs.submit.inputs import FetchedInput, Inputs
from ropewalk.jobs.runs.submit.once import submit_once
from ropewalk.jobs.runs.submit.records import make_record, packages_record, project_record, submission_record

TRACKERS = "ropewalk.trackers"  # a group of entry points


def job_named_by(file: Path, command: str = "run") -> str:
    """Return the job that the key `run` of a job file names. Raises ConfigError, with what to type, if it names none."""
    values = read_yaml(file)
    if "run" in values:
        find_job(job := str(values["run"]))
        return job
    kinds = {name: config_of(spec).model_fields for name, spec in JOBS.items()}
    fitting = [
        name
        for name, fields in kinds.items()
        if values and set(values) <= set(fields) and all(key in values for key, info in fields.items() if info.is_required())
    ]
    job = fitting[0] if len(fitting) == 1 else "JOB"
    which = f" (JOB: {' or '.join(fitting or JOBS)})" if job == "JOB" else ""
    raise ConfigError(
        f"{file}: names no job; type `ropewalk {command} {job} -c {file}`, or write `run: {job}` into the file{which}"
    )


def configure(job: str, file: Path | None, overrides: Sequence[str]) -> JobConfig:
    """Make a job's configuration from its file and overrides. Raises ConfigError."""
    kind = config_of(find_job(job))
    return load_config(kind, read_job_file(file, job) if file else {}, overrides)


def check(job: str, file: Path, overrides: Sequence[str]) -> tuple[JobConfig | None, list[str]]:
    """Check a job file without data, models or a cluster, and return its configuration or a message for each mistake.

    Modules of the user that it names are imported. Raises ConfigError if it cannot be read at all.
    """
    kind, values = config_of(find_job(job)), read_job_file(file, job)
    if problems := problems_of(kind, values, overrides):
        return None, problems
    try:
        config = load_config(kind, values, overrides)
        config.check_keys()
    except ConfigError as error:
        return None, [str(error)]
    return config, []


def configure_each(job: str, file: Path | None, overrides: Sequence[str], each: Sequence[str]) -> list[JobConfig]:
    """Make a configuration for each combination of `--each`. Raises ConfigError."""
    kind, values = config_of(find_job(job)), read_job_file(file, job) if file else {}
    for override in overrides:
        apply_override(values, override)
    return [load_config(kind, values, combination) for combination in combinations(each)]


def submit(
    job: str, config: JobConfig, cluster_name: str = "local", *, after: Sequence[Dependency] = (), command: Sequence[str] = ()
) -> RunDir:
    """Create a run and start its first attempt. Raises RopewalkError; a bad configuration leaves nothing behind."""
    return submit_many(job, [config], cluster_name, after=after, command=command)[0]


def submit_many(
    job: str,
    configs: Sequence[JobConfig],
    cluster_name: str = "local",
    *,
    after: Sequence[Dependency] = (),
    at_once: int | None = None,
    command: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> list[RunDir]:
    """Create and submit many runs, of which at most `at_once` run at the same time. Raises RopewalkError.

    `extra`: content of run.yaml that takes the place of what is written else.
    """
    backend = load_backend(cluster_name)
    if at_once is not None and at_once < len(configs):
        backend.check_waiting()

    def make() -> list[RunDir]:
        return create_runs(backend, job, configs, cluster_name, command, waits=bool(after), extra=extra)

    def begin(runs: Sequence[RunDir]) -> None:
        resources = runs[0].resources()
        if view_class(job).submit_needed is RunView.submit_needed:
            start(backend, runs, resources, [str(other) for other in after], at_once)
        else:
            for run in runs:
                start_with_needed(backend, run, resources, after)

    def complete(run: RunDir) -> None:
        if run.last_outcome() is None:
            with suppress(AlreadyRunningError):
                start_with_needed(backend, run, run.resources(), after)

    if (origin := current_origin()) is not None:
        return submit_once(origin, root_of_runs(configs, cluster_name), make, begin, complete)
    runs = make()
    begin(runs)
    return runs


def start(
    backend: Backend, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
) -> None:
    """Submit new runs to their backend. Raises RopewalkError; then runs that can never start are removed."""
    try:
        if len(runs) == 1:
            backend.submit(runs[0], resources, after)
        else:
            backend.submit_many(runs, resources, after, at_once)
    except RopewalkError as error:
        for run in runs:
            if not isinstance(error, SubmissionInDoubtError) and not _has_started(run):
                shutil.rmtree(run.path)
            else:
                run.event("submit_failed", error=str(error))
        raise


def _has_started(run: RunDir) -> bool:
    """Return True unless a new run ended, or has no attempt, before any process of it started."""
    outcome = run.last_outcome()
    if outcome is None:
        return bool(run.attempts())
    return bool(outcome.started) or has_agents(run) or not outcome.state.final


def start_with_needed(backend: Backend, run: RunDir, resources: Resources, after: Sequence[Dependency]) -> None:
    """Submit the runs that a run's job needs, and then the run, which starts once these have succeeded and `after` is met.

    If one of them has failed already, the outcome of the run is recorded at once. Raises RopewalkError, which is also recorded
    in the run.
    """
    others = list(after)
    try:
        backend.check_secrets(run.record.get("secrets") or ())
        others += map(Dependency, view_of(run).submit_needed(after))
        if not (broken := broken_dependencies(others)):
            backend.submit(run, resources, [str(other) for other in others])
    except RopewalkError as error:
        if not (broken := broken_dependencies(others)):  # otherwise a dependency failed during the submission
            if not isinstance(error, AlreadyRunningError):
                run.event("submit_failed", error=str(error))
            raise
    if broken:
        end_unstarted(run, resources, broken)


def create_runs(
    backend: Backend,
    job: str,
    configs: Sequence[JobConfig],
    cluster_name: str,
    command: Sequence[str],
    *,
    waits: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> list[RunDir]:
    """Check the configurations, and make the run directories of a submission. Raises RopewalkError.

    `waits`: the submission starts after other runs. `extra`: as in `submit_many`.
    """
    inputs, other = inputs_of(backend, configs, cluster_name), configs[0].children_cluster()
    pinned = [inputs.pin(config) for config in configs]
    configs, gpus_notice = set_gpus(backend, [config.resolved() for config, _ in pinned], waits=waits)
    check_inputs(backend, configs, inputs.path_here)
    backend.check_access()
    backend.check_capacity(len(configs))
    for config in configs:
        backend.check_secrets(config.secret_names())
    root = inputs.root
    if inputs.pending():
        inputs.fetch()
        check_inputs(backend, configs, inputs.path_here)
    backends = [backend, *([load_backend(other)] if other else [])]
    shipped_to = root if any(each.ships_code for each in backends) else None
    origin = submission_record(command, shipped_to) | ({"gpus_notice": gpus_notice} if gpus_notice else {})
    if len(configs) > 1:  # their owner gets one notification for all
        origin["submission"] = {"id": secrets.token_hex(8), "runs": len(configs)}
    project = project_record(job, configs[0], shipped_to)  # all runs of a submission use the same directory
    project |= packages_record(backend, configs[0], root or runs_root())
    records = [
        {
            **make_record(job, config, cluster_name, origin),
            **project,
            **({"fetched": [item._asdict() for item in fetched]} if fetched else {}),
            **({"mounts": dict(backend.mounts)} if backend.mounts else {}),
            **(extra or {}),
        }
        for config, (_, fetched) in zip(configs, pinned, strict=True)
    ]
    return RunDir.create_all([config.name or find_job(job).name for config in configs], records, root)


def fetch_inputs(configs: Sequence[JobConfig], cluster_name: str) -> list[FetchedInput]:
    """Fetch what the runs of a submission would need. Raises RopewalkError."""
    inputs = inputs_of(load_backend(cluster_name), configs, cluster_name)
    fetched = [item for config in configs for item in inputs.pin(config)[1]]
    inputs.fetch()
    return list(dict.fromkeys(fetched))


def inputs_of(backend: Backend, configs: Sequence[JobConfig], cluster_name: str) -> Inputs:
    """Return what looks up, pins and fetches the inputs of a submission."""
    other = configs[0].children_cluster()
    return Inputs(load_backend(other) if other else backend, root_of_runs(configs, cluster_name))


def root_of_runs(configs: Sequence[JobConfig], cluster_name: str) -> Path:
    """Return the runs' root of a submission: of the cluster of the run's children, else of its own."""
    other = configs[0].children_cluster()
    return (_root_of(other) if other else None) or _root_of(cluster_name) or runs_root()


def _root_of(cluster_name: str) -> Path | None:
    root = load_profile(cluster_name).options.get("runs")
    return Path(root).expanduser() if root else None


def check_inputs(backend: Backend, configs: Sequence[JobConfig], here: PathView) -> None:
    """Check that the cluster can provide the resources, and that trackers and inputs exist. Raises RopewalkError.

    If this machine cannot access the cluster's files, the run itself checks its inputs.
    """
    for resources in (configs[0].resources, *configs[0].children_resources()):
        backend.check_resources(resources)
    if configs[0].needs_others:
        backend.check_waiting()
    if configs[0].trackers:
        from importlib.metadata import entry_points  # slow: it scans every installed package

        installed = {point.name for point in entry_points(group=TRACKERS)}
        if missing := sorted(set(configs[0].trackers) - installed):
            names = ", ".join(sorted(installed)) or "none"
            raise ConfigError(f"trackers: {', '.join(missing)} not installed; installed: {names}")
    if backend.shares_files:
        for config in configs:
            config.preflight(here)
