"""Sends a run along with its Job, where the submitter does not see the volume: its directory in a ConfigMap, and its code."""

import base64
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, retry_for
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.job import load
from ropewalk.k8s.submission.stage_in import CODE_ARCHIVE, RUN_ARCHIVE

CONFIG_MAP_BYTES = 700_000  # Kubernetes takes 1 MiB, encoded
RUN_BYTES = 100_000  # kept for the run's own record, which holds the uncommitted changes as text
STAGED = "/staged"  # where the ConfigMap is mounted

Upload = Callable[[RunDir, bytes, str], None]  # puts an archive of code on the volume, through a pod


def stage(runs: Sequence[RunDir], number: int, jobs: Mapping[str, Object], upload: Upload) -> dict[str, Object]:
    """The ConfigMap of each run, by run id; its Job is changed so that its pods put it on the volume.

    Code that is too large for a ConfigMap, or that many runs share, is uploaded right away.
    """
    code = code_archive(runs[0])
    if code is not None and (len(runs) > 1 or len(code) > CONFIG_MAP_BYTES - RUN_BYTES):
        folder = code_folder(runs[0])
        assert folder is not None
        archive, place = code, f"{folder.parent.name}/{folder.name}"
        retry_for(PATIENCE_SECONDS, lambda: upload(runs[0], archive, place))
        code = None
    if (project := runs[0].record.get("project")) is not None:  # the user's own code, of which nobody knows how large it is
        folder = runs[0].path.parent / CODE_FOLDER / str(project["snapshot"])
        own, where = _archive(folder, sorted(folder.rglob("*"))), f"{CODE_FOLDER}/{folder.name}"
        retry_for(PATIENCE_SECONDS, lambda: upload(runs[0], own, where))
    staged = {}
    for run in runs:
        staged[run.id] = render_config_map(jobs[run.id], run, number, code)
        add_stage_in(jobs[run.id], run, staged[run.id]["metadata"]["name"])
    return staged


def stage_alone(job: Object, run: RunDir, number: int) -> Object:
    """The ConfigMap of a Job that outlives the run's own, as a release controller of many runs does, whose code is uploaded."""
    config_map = render_config_map(job, run, number, None)
    add_stage_in(job, run, config_map["metadata"]["name"])
    return config_map


def run_archive(run: RunDir, number: int) -> bytes:
    """The run's record and the attempt that a submission has opened, as tar.gz."""
    attempt = run.attempt_dir(number)
    return _archive(run.path, [run.path / "run.yaml", *sorted(path for path in attempt.iterdir() if path.is_file())])


def code_archive(run: RunDir) -> bytes | None:
    """The copy of the code that the run was submitted with, as tar.gz; None where it has none."""
    folder = code_folder(run)
    return _archive(folder, sorted(folder.rglob("*"))) if folder is not None else None


def code_folder(run: RunDir) -> Path | None:
    """Where the copy of the run's code lies on this machine, such as .code/HASH; None where it has none."""
    snapshot = (run.record.get("code") or {}).get("snapshot")
    return run.path.parent / CODE_FOLDER / str(snapshot) if snapshot else None


def _archive(root: Path, paths: Iterable[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as stream:
        for path in paths:
            stream.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=_without_owner)
    return buffer.getvalue()


def _without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry that belongs to nobody: the pods' user gets it, whoever sent it."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def render_config_map(job: Object, run: RunDir, number: int, code: bytes | None) -> Object:
    """The ConfigMap of a Job. Raises ConfigError where the run's record is too large for one."""
    parts = {RUN_ARCHIVE: run_archive(run, number), **({CODE_ARCHIVE: code} if code is not None else {})}
    if sum(map(len, parts.values())) > CONFIG_MAP_BYTES:
        limit = f"a ConfigMap takes {CONFIG_MAP_BYTES / 1e6:.1f} MB"
        remedy = "commit what is not committed, or mount the volume here: runs in the cluster's profile"
        raise ConfigError(f"{run.id}: its run.yaml is too large to be sent along: {limit}; {remedy}")
    folder = code_folder(run)
    metadata = {key: job["metadata"][key] for key in ("name", "labels", "namespace") if key in job["metadata"]}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"code": f"{folder.parent.name}/{folder.name}"} if folder is not None else {},
        "binaryData": {name: base64.b64encode(raw).decode() for name, raw in parts.items()},
    }


def add_stage_in(job: Object, run: RunDir, config_map: str) -> None:
    """Add to a Job the container that puts the run on the volume before its own starts, by the image's own ropewalk."""
    spec = job["spec"]["template"]["spec"]
    main, own = spec["containers"][0], load("stage-in.yaml")
    own |= {key: main[key] for key in ("image", "imagePullPolicy", "securityContext", "resources")}
    root = next(mount["mountPath"] for mount in main["volumeMounts"] if mount["name"] == "runs")
    own["command"] = module_command("ropewalk.k8s.submission.stage_in", STAGED, f"{root}/{run.id}", python=main["command"][0])
    own["volumeMounts"] = [*main["volumeMounts"], {"name": "staged", "mountPath": STAGED, "readOnly": True}]
    left_out = ("PYTHONPATH", "POD_", "NODE_NAME")  # the code may not be there yet
    own["env"] = [variable for variable in main["env"] if not variable["name"].startswith(left_out)]
    spec["initContainers"] = [own, *spec.get("initContainers", [])]
    spec["volumes"] = [*spec["volumes"], {"name": "staged", "configMap": {"name": config_map}}]
