"""What the user's words become: a run directory with all that the run is, handed to a backend."""

import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cluster
from cluster.backend import load_backend, load_profile
from cluster.config import JobConfig, load_config, read_yaml
from cluster.errors import ConfigError, RopewalkError
from cluster.run_dir import RunDir, runs_root
from cluster.spec import RunState
from jobs.catalog import config_of, find_job
from jobs.status import final_outcome

VERSIONS = ("ropewalk", "torch", "ray", "transformers", "tokenizers", "pyarrow", "numpy", "numba", "pydantic", "fsspec", "wandb")
SIDECARS = ("jobs.mirror",)
DIFF_LIMIT_BYTES = 1 << 20

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


def make_record(job: str, config: JobConfig, cluster_name: str, command: Sequence[str]) -> dict[str, Any]:
    """The content of run.yaml. Secrets are masked, the environment is never written."""
    spec = find_job(job)
    return {
        "job": spec.name,
        "entry": spec.entry,
        "engine": spec.engine.value,
        "preload": list(spec.preload),
        "sidecars": list(SIDECARS),
        "config": masked(config.model_dump(mode="json")),
        "resources": config.resources.model_dump(mode="json"),
        "cluster": cluster_name,
        "created": time.time(),
        "code": code_state(),
        "versions": versions(),
        "command": [_masked_word(word) for word in command],
    }


def unwritten_run(config: JobConfig, record: Mapping[str, Any]) -> RunDir:
    """A run for a dry run: it has a record, and nothing on disk."""
    run = RunDir(runs_root() / f"{config.name or record['job']}-dry-run")
    run.__dict__["record"] = {"run": run.id, **record}
    return run


def render(job: str, config: JobConfig, cluster_name: str) -> str:
    """The script or manifest that a submission would hand over, after the same checks."""
    config.preflight()
    record = make_record(job, config, cluster_name, ())
    return load_backend(cluster_name).render(unwritten_run(config, record), config.resources)


def submit(
    job: str, config: JobConfig, cluster_name: str = "local", *, after: Sequence[RunDir] = (), command: Sequence[str] = ()
) -> RunDir:
    """Write the run down and start its first attempt. Raises RopewalkError; nothing is left behind by a bad configuration."""
    config.preflight()
    backend = load_backend(cluster_name)
    root = load_profile(cluster_name).options.get("runs")
    record = make_record(job, config, cluster_name, command)
    run = RunDir.create(config.name or job, record, Path(root).expanduser() if root else None)
    try:
        backend.submit(run, config.resources, [other.id for other in after])
    except RopewalkError as error:
        run.event("submit_failed", error=str(error))
        raise
    return run


def resume(run: RunDir, overrides: Sequence[str] = ()) -> None:
    """Start a new attempt of an existing run, with other resources if asked. Raises RopewalkError."""
    outcome, attempts = final_outcome(run), run.attempts()
    if outcome is not None and outcome.state is RunState.SUCCEEDED:
        raise ConfigError(f"{run.id} has succeeded: there is nothing to resume; submit a new run to go further")
    foreign = [word for word in overrides if not word.startswith("resources.")]
    if foreign:
        raise ConfigError(f"{foreign[0]!r}: a run's configuration never changes, only its resources may: resources.KEY=VALUE")
    used = (run.attempt_details(attempts[-1]).get("resources") if attempts else None) or run.record["resources"]
    config = load_config(JobConfig, {"resources": used}, overrides)
    was_cancelled = run.cancel_requested
    run.withdraw_cancel()
    try:
        load_backend(run.record["cluster"]).submit(run, config.resources)
    except RopewalkError:
        if was_cancelled:
            run.request_cancel()
        raise
    run.event("resumed_by_user", resources=config.resources.model_dump(mode="json"))


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


def code_state() -> dict[str, Any]:
    """Commit, branch and uncommitted changes of the checkout this program runs from, else of the current directory."""
    home = Path(cluster.__file__).parent.parent
    place = home if (home / ".git").exists() else Path.cwd()
    commit = _git(place, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "branch": None, "dirty": False, "diff": "", "untracked": []}
    diff = _git(place, "diff", "HEAD") or ""
    untracked = (_git(place, "ls-files", "--others", "--exclude-standard") or "").splitlines()
    if len(diff) > DIFF_LIMIT_BYTES:
        diff = f"{diff[:DIFF_LIMIT_BYTES]}\n... cut at {DIFF_LIMIT_BYTES} characters"
    branch = _git(place, "rev-parse", "--abbrev-ref", "HEAD")
    return {"commit": commit, "branch": branch, "dirty": bool(diff), "diff": diff, "untracked": untracked[:100]}


def _git(place: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(place), *words], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


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
