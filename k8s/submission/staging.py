"""What travels with a Job whose submitter does not see the volume: the run's directory in a ConfigMap, and its code."""

import base64
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.backends.submission import PATIENCE_SECONDS, retry_for
from cluster.errors import ConfigError
from cluster.run.directory import CODE_FOLDER, RunDir
from k8s.manifests.job import load
from k8s.rayjob import pod_templates
from k8s.submission.stage_in import CODE_PARCEL, RUN_PARCEL
from k8s.volume.reader import Reader

Object = dict[str, Any]

CONFIG_MAP_BYTES = 700_000  # Kubernetes takes 1 MiB, encoded
RUN_BYTES = 100_000  # kept for the run's own record, which holds the uncommitted changes as text


def run_archive(run: RunDir, number: int) -> bytes:
    """The run's record and the attempt that a submission has opened."""
    attempt = run.attempt_dir(number)
    return _archive(run.path, [run.path / "run.yaml", *sorted(path for path in attempt.iterdir() if path.is_file())])


def code_archive(run: RunDir) -> bytes | None:
    """The copy of the code that the run was submitted with, if it has one."""
    folder = code_folder(run)
    return _archive(folder, sorted(folder.rglob("*"))) if folder is not None else None


def code_folder(run: RunDir) -> Path | None:
    """Where that copy lies here: .code/HASH."""
    snapshot = (run.record.get("code") or {}).get("snapshot")
    return run.path.parent / CODE_FOLDER / str(snapshot) if snapshot else None


def _archive(root: Path, paths: Iterable[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as stream:
        for path in paths:
            stream.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=_anonymous)
    return buffer.getvalue()


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """The pods' user has it, whoever sent it."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def render_parcel(job: Object, run: RunDir, number: int, code: bytes | None) -> Object:
    """The ConfigMap of a Job."""
    parts = {RUN_PARCEL: run_archive(run, number), **({CODE_PARCEL: code} if code is not None else {})}
    if sum(map(len, parts.values())) > CONFIG_MAP_BYTES:
        limit = f"a ConfigMap takes {CONFIG_MAP_BYTES / 1e6:.1f} MB"
        raise ConfigError(
            f"{run.id}: its run.yaml is too large to travel: {limit}; commit what is not committed, or see the volume"
        )
    folder = code_folder(run)
    metadata = {key: job["metadata"][key] for key in ("name", "labels", "namespace") if key in job["metadata"]}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"code": f"{folder.parent.name}/{folder.name}"} if folder is not None else {},
        "binaryData": {name: base64.b64encode(raw).decode() for name, raw in parts.items()},
    }


def pack(runs: Sequence[RunDir], number: int, jobs: Mapping[str, Object], reader: Reader) -> dict[str, Object]:
    """The ConfigMap of each run, by run id; its Job is changed so that it unpacks it.

    Code that is too large for one, or that many runs share, is put on the volume right away.
    """
    code = code_archive(runs[0])
    if code is not None and (len(runs) > 1 or len(code) > CONFIG_MAP_BYTES - RUN_BYTES):
        folder = code_folder(runs[0])
        assert folder is not None
        archive, place = code, f"{folder.parent.name}/{folder.name}"
        retry_for(PATIENCE_SECONDS, lambda: reader.upload(runs[0], archive, place))
        code = None
    parcels = {}
    for run in runs:
        parcels[run.id] = render_parcel(jobs[run.id], run, number, code)
        add_unpacking(jobs[run.id], run, parcels[run.id]["metadata"]["name"])
    return parcels


def add_unpacking(job: Object, run: RunDir, name: str) -> Object:
    """The Job with a container that unpacks the parcel before the run's own starts, by the image's own ropewalk."""
    for template in pod_templates(job):
        _add_unpacking(template["spec"], run, name)
    return job


def _add_unpacking(spec: Object, run: RunDir, name: str) -> None:
    main = spec["containers"][0]
    own = load("stage-in.yaml")
    mine = {key: main[key] for key in ("image", "imagePullPolicy", "securityContext", "volumeMounts", "resources")}
    root = next(mount["mountPath"] for mount in main["volumeMounts"] if mount["name"] == "runs")
    own |= mine | {"command": [main["command"][0], "-m", "k8s.submission.stage_in", "/parcel", f"{root}/{run.id}"]}
    own["volumeMounts"] = [*main["volumeMounts"], {"name": "parcel", "mountPath": "/parcel", "readOnly": True}]
    kept = ("PYTHONPATH", "POD_", "NODE_NAME")  # the code may not be there yet
    own["env"] = [variable for variable in main["env"] if not variable["name"].startswith(kept)]
    spec["initContainers"] = [own, *spec.get("initContainers", [])]
    spec["volumes"] = [*spec["volumes"], {"name": "parcel", "configMap": {"name": name}}]
