"""Sends a run with its Job if the submitter does not mount the volume: the run directory in a ConfigMap, and its code."""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, retry_for
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.code_copy import pack, pack_code
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.job import load
from ropewalk.k8s.submission.stage_in import CODE_ARCHIVE, RUN_ARCHIVE

CONFIG_MAP_BYTES = 700_000  # before base64; Kubernetes accepts 1 MiB
RUN_BYTES = 100_000  # reserved for the run's record, which contains the uncommitted changes as text
STAGED = "/staged"  # mount path of the ConfigMap

Upload = Callable[[RunDir, bytes, str], None]  # writes an archive of code to a folder of the volume, through a pod


def stage(runs: Sequence[RunDir], number: int, jobs: Mapping[str, Object], upload: Upload) -> dict[str, Object]:
    """Render the ConfigMap of each run, by run id, and change its Job so that its pods unpack it onto the volume.

    Code that is too large for a ConfigMap, or shared by several runs, is uploaded immediately.
    """

    def upload_now(archive: bytes, folder: Path) -> None:
        retry_for(PATIENCE_SECONDS, lambda: upload(runs[0], archive, f"{folder.parent.name}/{folder.name}"))

    folder = code_folder(runs[0])
    code = pack_code(folder) if folder is not None else None
    if folder is not None and code is not None and (len(runs) > 1 or len(code) > CONFIG_MAP_BYTES - RUN_BYTES):
        upload_now(code, folder)
        code = None
    if (project := runs[0].record.get("project")) is not None:  # the user's own code, which can be large
        folder = runs[0].path.parent / CODE_FOLDER / str(project["snapshot"])
        upload_now(pack_code(folder), folder)
    staged = {}
    for run in runs:
        staged[run.id] = render_config_map(jobs[run.id], run, number, code)
        add_stage_in(jobs[run.id], run, staged[run.id]["metadata"]["name"])
    return staged


def stage_alone(job: Object, run: RunDir, number: int) -> Object:
    """Return a separate ConfigMap for a Job that outlives the run's own, such as a release controller; its code is uploaded."""
    config_map = render_config_map(job, run, number, None)
    add_stage_in(job, run, config_map["metadata"]["name"])
    return config_map


def run_archive(run: RunDir, number: int) -> bytes:
    """Pack the run's record and the attempt that a submission has opened as tar.gz."""
    attempt = run.attempt_dir(number)
    return pack(run.path, [run.path / "run.yaml", *sorted(path for path in attempt.iterdir() if path.is_file())])


def code_folder(run: RunDir) -> Path | None:
    """Return the folder of the run's code on this machine, such as .code/HASH; None if it has none."""
    snapshot = (run.record.get("code") or {}).get("snapshot")
    return run.path.parent / CODE_FOLDER / str(snapshot) if snapshot else None


def render_config_map(job: Object, run: RunDir, number: int, code: bytes | None) -> Object:
    """Render the ConfigMap of a Job. Raises ConfigError if the run's record is too large for one."""
    parts = {RUN_ARCHIVE: run_archive(run, number), **({CODE_ARCHIVE: code} if code is not None else {})}
    if sum(map(len, parts.values())) > CONFIG_MAP_BYTES:
        limit = f"a ConfigMap holds at most {CONFIG_MAP_BYTES / 1e6:.1f} MB"
        remedy = "commit the uncommitted changes, or mount the volume on this machine: `runs` in the cluster's profile"
        raise ConfigError(f"{run.id}: its run.yaml is too large to be sent with the Job: {limit}; {remedy}")
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
    """Add the init container that unpacks the run onto the volume with the image's own ropewalk."""
    spec = job["spec"]["template"]["spec"]
    main, init = spec["containers"][0], load("stage-in.yaml")
    init |= {key: main[key] for key in ("image", "imagePullPolicy", "securityContext", "resources")}
    root = next(mount["mountPath"] for mount in main["volumeMounts"] if mount["name"] == "runs")
    init["command"] = module_command("ropewalk.k8s.submission.stage_in", STAGED, f"{root}/{run.id}", python=main["command"][0])
    init["volumeMounts"] = [*main["volumeMounts"], {"name": "staged", "mountPath": STAGED, "readOnly": True}]
    left_out = ("PYTHONPATH", "POD_", "NODE_NAME")  # the code may not be on the volume yet
    init["env"] = [variable for variable in main["env"] if not variable["name"].startswith(left_out)]
    spec["initContainers"] = [init, *spec.get("initContainers", [])]
    spec["volumes"] = [*spec["volumes"], {"name": "staged", "configMap": {"name": config_map}}]
