"""Shell completion, and the arguments and options that several commands share."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ropewalk.jobs.cli.job_keys import Key
    from ropewalk.jobs.runs.models.model_versions import RegisteredModel

Candidates = list[tuple[str, str]]  # (completion, description)


def jobs(incomplete: str) -> Candidates:
    """Complete job names, including jobs of plug-ins."""
    from importlib.metadata import entry_points

    from ropewalk.jobs.registry import GROUP, JOBS

    summaries = {point.name: point.value for point in entry_points(group=GROUP)}
    summaries |= {spec.name: spec.summary for spec in JOBS.values()}
    return [(name, summary) for name, summary in summaries.items() if name.startswith(incomplete)]


def keys(context: typer.Context, incomplete: str) -> Candidates:
    """Complete `key=` of the job on the command line, or of resources if the command has no job.

    A single match is listed with its values, because a shell appends a space after the only candidate.
    """
    from ropewalk.cluster.config import JobConfig
    from ropewalk.cluster.errors import RopewalkError
    from ropewalk.jobs.cli.job_keys import keys_of
    from ropewalk.jobs.registry import config_of, find_job

    try:
        job_keys = keys_of(config_of(find_job(context.params["job"] or "")) if "job" in context.params else JobConfig)
    except RopewalkError:
        return []
    job_keys = job_keys if "job" in context.params else [key for key in job_keys if key.section == "resources"]
    overrides = context.params.get("overrides") or []
    if overrides[-1:] == ["="]:  # bash splits optim.schedule=c into three words
        return [(value, "") for key in job_keys if key.name in overrides[-2:] for value in _values(key)]
    name, assigned, _ = incomplete.partition("=")
    matching = [key for key in job_keys if (key.name == name if assigned else key.name.startswith(name))]
    candidates = [(f"{key.name}=", key.meaning) for key in matching]
    return candidates + [(f"{key.name}={value}", "") for key in matching for value in _values(key) if len(matching) == 1]


def _values(key: "Key") -> Iterator[str]:
    yield from key.values or ["" if key.in_words else {"unset": "null", None: ""}.get(key.default, key.default or "")]


def topics(context: typer.Context, incomplete: str) -> Candidates:
    """Complete commands and jobs, and the keys of a job that is named before."""
    from ropewalk.jobs.cli.job_keys import all_keys
    from ropewalk.jobs.registry import JOBS, config_of

    before = context.params.get("topics") or []
    if before and before[0] in JOBS:
        names = [(key.name, key.meaning) for key in all_keys(config_of(JOBS[before[0]]))]
    else:
        group = context.parent.command.commands if context.parent else {}  # type: ignore[attr-defined]
        names = [*((name, command.get_short_help_str()) for name, command in group.items()), *jobs("")]
    return [(name, meaning) for name, meaning in names if name.startswith(incomplete)]


def clusters(incomplete: str) -> Candidates:
    """Complete clusters of the profile file, and the built-in ones."""
    from ropewalk.cluster.backends.profiles import profile_file
    from ropewalk.cluster.config_reader import read_yaml
    from ropewalk.cluster.errors import RopewalkError

    descriptions = {"local": "this machine", "slurm": "the Slurm cluster of this machine", "k8s": "the cluster of the kubeconfig"}
    try:
        path = profile_file()
        profiles = read_yaml(path) if path else {}
    except RopewalkError:
        profiles = {}
    descriptions |= {str(name): f"a cluster of {path}" for name in profiles}
    return [(name, meaning) for name, meaning in descriptions.items() if name.startswith(incomplete)]


def runs(incomplete: str) -> Candidates:
    """Complete `latest` and the ids of runs under every root, newest first."""
    from ropewalk.cluster.errors import RopewalkError
    from ropewalk.jobs.cli.known_runs import known_runs
    from ropewalk.jobs.runs.show.status import newest_first

    names = known_runs()
    with suppress(RopewalkError, OSError):
        names = [*(run.id for run in newest_first()), *names]
    return [(name, "") for name in ["latest", *names] if name.startswith(incomplete)]


def dependencies(incomplete: str) -> Candidates:
    """Complete runs, after a condition too: any:RUN, failed:RUN."""
    prefix = next((condition for condition in ("any:", "failed:") if incomplete.startswith(condition)), "")
    return [(f"{prefix}{name}", text) for name, text in runs(incomplete.removeprefix(prefix))]


def models(incomplete: str) -> Candidates:
    """Complete aliases and versions of the registry, and run ids."""
    return [*_complete_registered(incomplete, aliases=True, versions=True), *runs(incomplete)]


def aliases(incomplete: str) -> Candidates:
    """Complete aliases of the registry."""
    return _complete_registered(incomplete, aliases=True, versions=False)


def names(incomplete: str) -> Candidates:
    """Complete model names of the registry."""
    return [(name, "") for name in _models() if name.startswith(incomplete)]


def _models() -> dict[str, "RegisteredModel"]:
    from ropewalk.cluster.errors import RopewalkError
    from ropewalk.jobs.runs.models.model_versions import registered_models

    try:
        return {model.name: model for model in registered_models()}
    except (RopewalkError, OSError):
        return {}


def _complete_registered(incomplete: str, *, aliases: bool, versions: bool) -> Candidates:
    from ropewalk.cluster.errors import DamagedFileError

    descriptions: dict[str, str] = {}
    for model in _models().values():
        with suppress(DamagedFileError):
            if aliases:
                targets = {alias: version.id for alias, version in model.aliases().items()}
                descriptions |= {f"{model.name}@{alias}": version for alias, version in targets.items()}
                descriptions |= {alias: version for alias, version in targets.items() if alias not in descriptions}
            if versions:
                descriptions |= {version.id: version.ref for version in model.versions()}
    return [(name, meaning) for name, meaning in descriptions.items() if name.startswith(incomplete)]


# --- arguments and options that several commands share

RunRef = Annotated[
    str,
    typer.Argument(metavar="RUN", help="a run: its id or a unique prefix, its name or directory, or latest", autocompletion=runs),
]
JobName = Annotated[str | None, typer.Argument(metavar="JOB", help="preprocess, pretrain, evaluate, ...", autocompletion=jobs)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="overrides, such as optim.lr=1e-3", autocompletion=keys)
]
NewKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE ...]",
        help="change resources and other keys from the new attempt on; not data, model and seed",
        autocompletion=keys,
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("-c", "--config", metavar="FILE.yaml", help="the job file")]
Cluster = Annotated[
    str,
    typer.Option("--on", metavar="CLUSTER", help="cluster from the profile file, or local, slurm, k8s", autocompletion=clusters),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything and print the plan without submitting")]
Script = Annotated[bool, typer.Option("--script", help="print the script or manifest without submitting")]
HelpFlag = Annotated[bool, typer.Option("-h", "--help", help="show this page; after JOB: the usual keys of the job")]
AllKeys = Annotated[bool, typer.Option("--all", help="with the help of a job: all keys, not only the usual ones")]
