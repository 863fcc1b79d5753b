"""What the user's words become: a run directory with all that the run is, handed to a backend."""

import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.backends.base import Backend
from cluster.backends.profiles import load_backend, load_profile
from cluster.config import JobConfig, Resources, apply_override, load_config, read_yaml
from cluster.errors import ConfigError, RopewalkError
from cluster.run.directory import RunDir, runs_root
from cluster.spec import RunState
from jobs.registry import config_of, find_job
from jobs.runs.combinations import combinations
from jobs.runs.remote import write_there
from jobs.runs.snapshot import checkout, code_state, take_snapshot
from jobs.runs.status import final_outcome, find_run, settle

VERSIONS = ("ropewalk", "torch", "ray", "transformers", "tokenizers", "pyarrow", "numpy", "numba", "pydantic", "fsspec", "wandb")
SIDECARS = ("jobs.tracking.wandb_sync",)

_SECRET = re.compile(
    r"(api_?key|access_?key|secret_?key|private_?key|auth_?key|^key|secret|passw(or)?d|passphrase|credentials?|token)$",
    re.IGNORECASE,
)
_TOKENS_OF_TEXT = re.compile(r"(bos|eos|pad|unk|mask|sep|cls|end|start|document|special|next|per)_token$", re.IGNORECASE)
_SECRET_IN_URL = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


def configure(job: str, file: Path | None, overrides: Sequence[str]) -> JobConfig:
    """The job's frozen configuration. Raises ConfigError."""
    kind = config_of(find_job(job))
    return load_config(kind, read_yaml(file) if file else {}, overrides)


def configure_each(job: str, file: Path | None, overrides: Sequence[str], each: Sequence[str]) -> list[JobConfig]:
    """One configuration a combination of `--each`. Raises ConfigError."""
    kind, values = config_of(find_job(job)), read_yaml(file) if file else {}
    for word in overrides:
        apply_override(values, word)
    return [load_config(kind, values, own) for own in combinations(each)]


def make_record(job: str, config: JobConfig, cluster_name: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The content of run.yaml. Secrets are masked, the environment is never written."""
    spec = find_job(job)
    return {
        "job": spec.name,
        "entry": spec.entry,
        "engine": (config.preferred_engine() or spec.engine).value,
        "preload": list(spec.preload),
        "sidecars": list(SIDECARS),
        "config": masked(config.model_dump(mode="json")),
        "resources": config.resources.model_dump(mode="json"),
        "cluster": cluster_name,
        **masked(config.facts(cluster_name)),
        **origin,
    }


def origin_of(command: Sequence[str], root: Path | None = None) -> dict[str, Any]:
    """When, by which command and from which code: the same for all runs of a submission.

    The code is copied under `root`; without one it stays where it is.
    """
    place, folder = checkout()
    not_code = [runs_root(), *([root] if root else [])]
    code = code_state(place, not_code)
    if place and root:
        code["folder"] = folder
        code["snapshot"], code["left_out"] = take_snapshot(place, root, not_code)
    words = [_masked_word(word) for word in command]
    return {"created": time.time(), "versions": versions(), "command": words, "code": code}


def unwritten_run(config: JobConfig, record: Mapping[str, Any]) -> RunDir:
    """A run for a dry run: it has a record, and nothing on disk."""
    path = runs_root() / f"{config.name or record['job']}-dry-run"
    return RunDir(path, record={"run": path.name, **record})


def render(job: str, configs: Sequence[JobConfig], cluster_name: str) -> str:
    """The script or manifest that a submission would hand over, after the same checks, and what the cluster says of it.

    Of many runs it is the array's where the backend has such a thing, else the first run's.
    """
    backend = load_backend(cluster_name)
    _check_inputs(backend, configs)
    origin, resources = origin_of(()), configs[0].resources
    runs = [unwritten_run(config, make_record(job, config, cluster_name, origin)) for config in configs]
    script = f"{backend.render_many(runs, resources).rstrip()}\n"
    estimate = " ".join(backend.start_estimate(runs[0], resources).split())
    return f"{script}# {estimate}\n" if estimate else script  # a comment, so that the whole stays a script


def submit(
    job: str, config: JobConfig, cluster_name: str = "local", *, after: Sequence[RunDir] = (), command: Sequence[str] = ()
) -> RunDir:
    """Write the run down and start its first attempt. Raises RopewalkError; nothing is left behind by a bad configuration."""
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
    """The same for many runs, which are created and submitted together; at most `at_once` of them run at a time."""
    backend = load_backend(cluster_name)
    runs = write_down(backend, job, configs, cluster_name, command)
    start(backend, runs, configs[0].resources, [other.id for other in after], at_once)
    return runs


def start(
    backend: Backend, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
) -> None:
    """Hand run directories that were written down to their backend. Raises RopewalkError, and notes it in each of them."""
    try:
        if len(runs) == 1:
            backend.submit(runs[0], resources, after)
        else:
            backend.submit_many(runs, resources, after, at_once)
    except RopewalkError as error:
        for run in runs:
            run.event("submit_failed", error=str(error))
        raise


def write_down(
    backend: Backend, job: str, configs: Sequence[JobConfig], cluster_name: str, command: Sequence[str]
) -> list[RunDir]:
    """The run directories of what is about to be submitted. Raises RopewalkError."""
    _check_inputs(backend, configs)
    other = configs[0].other_cluster()
    root = _root_of(cluster_name) if other is None else _root_of(other) or _root_of(cluster_name)
    root = root or runs_root()
    backends = [backend, *([load_backend(other)] if other else [])]
    origin = origin_of(command, root if any(one.ships_code for one in backends) else None)
    records = [make_record(job, config, cluster_name, origin) for config in configs]
    return RunDir.create_all([config.name or job for config in configs], records, root)


def _root_of(cluster_name: str) -> Path | None:
    named = load_profile(cluster_name).options.get("runs")
    return Path(named).expanduser() if named else None


def _check_inputs(backend: Backend, configs: Sequence[JobConfig]) -> None:
    """Whether the cluster may have such nodes at all, and local inputs exist; of a cluster whose files this machine does not see,
    the run itself finds out.
    """
    backend.check_resources(configs[0].resources)
    if backend.shares_files:
        for config in configs:
            config.preflight(backend.path_here)


def resume(run: RunDir, overrides: Sequence[str] = ()) -> None:
    """Start a new attempt of an existing run, with other resources if asked. Raises RopewalkError."""
    if settle(run).state is RunState.SUCCEEDED:
        raise ConfigError(f"{run.id} has succeeded: there is nothing to resume; submit a new run to go further")
    foreign = [word for word in overrides if not word.startswith("resources.")]
    if foreign:
        raise ConfigError(f"{foreign[0]!r}: a run's configuration never changes, only its resources may: resources.KEY=VALUE")
    config = load_config(JobConfig, {"resources": run.resources().model_dump(mode="json")}, overrides)
    was_cancelled = run.cancel_requested
    run.withdraw_cancel()
    run.withdraw_nodes()
    try:
        load_backend(run.record["cluster"]).submit(run, config.resources)
    except RopewalkError:
        if was_cancelled:
            run.request_cancel()
        raise
    run.event("resumed_by_user", resources=config.resources.model_dump(mode="json"))


def resume_instead(job: str, file: Path | None, overrides: Sequence[str], word: str) -> RunDir:
    """`run JOB --resume RUN`: the run goes on with the configuration that it has. Raises ConfigError."""
    run = find_run(word)
    if run.record["job"] != find_job(job).name:
        raise ConfigError(f"--resume {word}: {run.id} is a {run.record['job']} run, not a {job}; `ropewalk resume {run.id}`")
    if file is not None:
        raise ConfigError(f"--resume {word}: a run's configuration never changes; leave -c {file} out, or start a new {job}")
    resume(run, overrides)
    return run


def scale(run: RunDir, nodes: int) -> None:
    """Ask a live elastic run to go on with another number of nodes. Raises ConfigError."""
    if final_outcome(run) is not None:
        raise ConfigError(f"{run.id} is over; `ropewalk resume {run.id} resources.nodes={nodes}` goes on with it")
    allowed = run.resources().nodes
    if not allowed.elastic:
        remedy = f"cancel it, then `ropewalk resume {run.id} resources.nodes=1..{max(nodes, allowed.most)}`"
        raise ConfigError(f"{run.id} has resources.nodes={allowed}, a fixed number; {remedy}")
    if not allowed.least <= nodes <= allowed.most:
        raise ConfigError(f"{nodes} nodes: {run.id} has resources.nodes={allowed}; choose one of these")
    run.request_nodes(nodes)
    if not write_there(run, run.requests.path.name):  # else whoever carries it says so: what is written here does not get there
        run.event("scaled_by_user", nodes=nodes)


# --- what is recorded


def versions() -> dict[str, str | None]:
    """Python and the packages that decide results; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def masked(value: Any, key: str = "") -> Any:
    """Plain values with every string under a key that names a secret replaced, and passwords taken out of URLs."""
    if isinstance(value, Mapping):
        return {k: masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(v, key) for v in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(key) and not _TOKENS_OF_TEXT.search(key):
        return "***"
    return _SECRET_IN_URL.sub("***", value)


def _masked_word(word: str) -> str:
    key, separator, text = word.partition("=")
    return f"{key}={masked(text, key.rpartition('.')[2])}" if separator else str(masked(word))
