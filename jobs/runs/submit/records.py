"""Content of run.yaml: the job and its configuration, and what a submission adds: code, versions, the user's project."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.config import CodeConfig, JobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.packages.archive import FOLDER, adopt, pack
from ropewalk.cluster.packages.build import build
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.cluster.run.origin import current_origin
from ropewalk.cluster.run.project import project_directory
from ropewalk.jobs.registry import find_job
from ropewalk.jobs.runs.submit.notification import NOTIFY_SIDECAR, notify_file
from ropewalk.jobs.runs.submit.provenance import mask_argument, mask_secrets, versions
from ropewalk.jobs.runs.submit.snapshot import checkout, code_of, code_state, project_of, take_snapshot

SIDECARS = ("ropewalk.jobs.runs.mirror.sidecar",)
TRACKERS_SIDECAR = "ropewalk.jobs.runs.mirror.trackers"


def make_record(job: str, config: JobConfig, cluster_name: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Make the content of run.yaml. Secrets are masked, and the environment is not recorded."""
    spec = find_job(job)
    return {
        "job": spec.name,
        "entry": spec.entry,
        "engine": (config.preferred_engine() or spec.engine).value,
        "preload": list(spec.preload),
        "sidecars": [
            *SIDECARS,
            *([TRACKERS_SIDECAR] if config.trackers else []),
            *([NOTIFY_SIDECAR] if notify_file().exists() else []),
        ],
        "config": mask_secrets(config.model_dump(mode="json")),
        "resources": config.resources.model_dump(mode="json"),
        "cluster": cluster_name,
        **({} if config.asks_hub() else {"offline": True}),
        **({} if config.has_checkpoints else {"checkpoints": False}),
        **({"required_environment": dict(required)} if (required := config.required_environment()) else {}),
        **({"secrets": list(names)} if (names := config.secret_names()) else {}),
        **mask_secrets(config.extra_record(cluster_name)),
        **origin,
    }


def packages_record(backend: Backend, config: JobConfig, root: Path) -> dict[str, Any]:
    """Build or pack the environment of a run under the runs' root, and return its description for run.yaml; empty if it has none.

    Raises ConfigError.
    """
    wanted = backend.packages(config.packages)
    if wanted is None:
        return {}
    if wanted.uv is not None:
        description = build(Path(wanted.uv), root)
    else:
        path = Path(str(wanted.path))
        if not path.exists():
            raise ConfigError(f"packages.path: {path}: no such file or folder")
        archive = pack(path, root / FOLDER) if path.is_dir() else adopt(path, root / FOLDER)
        description = {"source": "path", "hash": archive.partition(".")[0], "archive": archive}
    return {"packages": {**description, "passed_on": config.passes_packages_on}}


def child_packages_record(backend: Backend, config: JobConfig, parent: RunDir) -> dict[str, Any]:
    """Return the description of a child's environment: its own, else its parent's, else the profile's. Raises ConfigError."""
    inherited = parent.record.get("packages")
    if config.packages is None and inherited:
        return {"packages": {**inherited, "passed_on": config.passes_packages_on}}
    return packages_record(backend, config, parent.path.parent)


def submission_record(command: Sequence[str], root: Path | None = None) -> dict[str, Any]:
    """Return the part of run.yaml that all runs of a submission share: time, command, versions, code, directory.

    The code is copied under `root`; without a root the runs use the code in place.
    """
    if (origin := current_origin()) is not None:
        code, command = origin.code, origin.command
    else:
        tree, folder, is_program = checkout()
        not_code = [runs_root(), *([root] if root else [])]
        code = (
            {**code_of(tree, root, not_code), "folder": folder, "is_program": is_program}
            if tree and root
            else code_state(tree, not_code)
        )
    arguments = [mask_argument(argument) for argument in command]
    return {"created": time.time(), "versions": versions(), "command": arguments, "code": code, "directory": str(Path.cwd())}


def needs_own_code(job: str, config: JobConfig) -> bool:
    """Return True if the job (MODULE:NAME) or its keys name modules of the user's own."""
    return ":" in job or config.own_code()


def wanted_project(job: str, config: JobConfig) -> tuple[str, CodeConfig] | None:
    """Return the directory of the user's code that is copied with a run, and how; None if nothing is to be copied."""
    wanted = config.project() or ((project_directory(), CodeConfig()) if needs_own_code(job, config) else None)
    return wanted if wanted is not None and wanted[1].ship else None


def project_record(job: str, config: JobConfig, root: Path | None) -> dict[str, Any]:
    """Copy the user's code that a run needs under `root`, and return its description for run.yaml; empty if it is not copied."""
    wanted = wanted_project(job, config)
    if wanted is None or root is None:
        return {}
    if (origin := current_origin()) is not None and origin.project is not None:
        return {"project": origin.project}
    directory, code = wanted
    tree, folder = project_of(Path(directory), Path(code.root) if code.root else None)
    not_code = [path.resolve() for path in (runs_root(), root)]
    snapshot, left_out = take_snapshot(tree, root, not_code, code.exclude)
    if snapshot is None:
        raise ConfigError(f"code: {tree} cannot be copied for the run: {left_out[0]}; fix that, or set code.ship=false")
    return {"project": {"root": str(tree), "snapshot": snapshot, "folder": folder, "left_out": left_out}}
