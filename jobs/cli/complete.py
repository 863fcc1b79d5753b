"""Shell completion of what a user types: jobs, the keys of the job that was typed, clusters, run ids."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ropewalk.jobs.cli.job_keys import Key
    from ropewalk.jobs.runs.models.model_versions import RegisteredModel

Candidates = list[tuple[str, str]]  # a word, and what a shell shows beside it


def jobs(incomplete: str) -> Candidates:
    """Jobs whose name begins so, also those that others add."""
    from importlib.metadata import entry_points

    from ropewalk.jobs.registry import GROUP, JOBS

    known = {point.name: point.value for point in entry_points(group=GROUP)}
    known |= {spec.name: spec.summary for spec in JOBS.values()}
    return [(name, summary) for name, summary in known.items() if name.startswith(incomplete)]


def keys(context: typer.Context, incomplete: str) -> Candidates:
    """`key=` of the job that was typed before, of resources where no job is; the last one left also with its values.

    With its values, since a shell adds a space behind the only candidate.
    """
    from ropewalk.cluster.config import JobConfig
    from ropewalk.cluster.errors import RopewalkError
    from ropewalk.jobs.cli.job_keys import keys_of
    from ropewalk.jobs.registry import config_of, find_job

    try:
        known = keys_of(config_of(find_job(context.params["job"] or "")) if "job" in context.params else JobConfig)
    except RopewalkError:
        return []
    known = known if "job" in context.params else [key for key in known if key.section == "resources"]
    words = context.params.get("overrides") or []
    if words[-1:] == ["="]:  # bash makes three words of optim.schedule=c
        return [(value, "") for key in known if key.name in words[-2:] for value in _values(key)]
    name, assigned, _ = incomplete.partition("=")
    found = [key for key in known if (key.name == name if assigned else key.name.startswith(name))]
    candidates = [(f"{key.name}=", key.meaning) for key in found]
    return candidates + [(f"{key.name}={value}", "") for key in found for value in _values(key) if len(found) == 1]


def _values(key: "Key") -> Iterator[str]:
    yield from key.values or [{"unset": "null", None: ""}.get(key.default, key.default or "")]


def clusters(incomplete: str) -> Candidates:
    """Clusters of the profile file, and those that exist without one."""
    from ropewalk.cluster.backends.profiles import profile_file
    from ropewalk.cluster.config_reader import read_yaml
    from ropewalk.cluster.errors import RopewalkError

    known = {"local": "this machine", "slurm": "the Slurm cluster of this machine", "k8s": "the cluster of the kubeconfig"}
    try:
        path = profile_file()
        profiles = read_yaml(path) if path else {}
    except RopewalkError:
        profiles = {}
    known |= {str(name): f"a cluster of {path}" for name in profiles}
    return [(name, meaning) for name, meaning in known.items() if name.startswith(incomplete)]


def runs(incomplete: str) -> Candidates:
    """Ids of runs under every root, newest first, and `latest`."""
    from ropewalk.cluster.errors import RopewalkError
    from ropewalk.jobs.runs.show.status import all_runs

    try:
        names = [run.id for run in reversed(all_runs())]
    except (RopewalkError, OSError):
        names = []
    return [(name, "") for name in ["latest", *names] if name.startswith(incomplete)]


def models(incomplete: str) -> Candidates:
    """Aliases and versions of the registry, and ids of runs."""
    return [*_registered(incomplete, aliases=True, versions=True), *runs(incomplete)]


def aliases(incomplete: str) -> Candidates:
    """Aliases of the registry."""
    return _registered(incomplete, aliases=True, versions=False)


def names(incomplete: str) -> Candidates:
    """Models of the registry."""
    return [(name, "") for name in _models() if name.startswith(incomplete)]


def _models() -> dict[str, "RegisteredModel"]:
    from ropewalk.cluster.errors import RopewalkError
    from ropewalk.jobs.runs.models.model_versions import registered_models

    try:
        return {model.name: model for model in registered_models()}
    except (RopewalkError, OSError):
        return {}


def _registered(incomplete: str, *, aliases: bool, versions: bool) -> Candidates:
    found: dict[str, str] = {}
    for model in _models().values():
        if aliases:
            pointed = {alias: version.id for alias, version in model.aliases().items()}
            found |= {f"{model.name}@{alias}": version for alias, version in pointed.items()}
            found |= {alias: version for alias, version in pointed.items() if alias not in found}
        if versions:
            found |= {version.id: version.ref for version in model.versions()}
    return [(name, meaning) for name, meaning in found.items() if name.startswith(incomplete)]
