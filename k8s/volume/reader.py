"""Reads a run's files on a volume that this machine does not mount: through a pod of the run, or a pod that only reads."""

import hashlib
import io
import json
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from getpass import getuser
from pathlib import Path
from typing import BinaryIO, cast

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.hub import progress
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import require_empty
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes, NotFoundError, RefusedError
from ropewalk.k8s.api.create import create_or_adopt
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.job import apply_profile, load_job
from ropewalk.k8s.names import COMMON_LABELS, COMMON_SELECTOR, ROLE_LABEL, RUN_LABEL
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.pending_reasons import pod_reason
from ropewalk.k8s.volume.sync_client import SyncWriter, request_of

log = logging.getLogger(__name__)

READY_SECONDS = 60.0  # for the reader's pod to start, including a pull of its image
POLL_SECONDS = 0.2
READER = "ropewalk-reader"
LEASE_SECONDS = 120  # the pod's deadline is extended by this much, as often, while it is used
MIB, GIB = 1 << 20, 1 << 30
LEAST_MIB, SPARE_GIB = 768, 4  # memory of Python and torch beside the model: requested, and allowed
UNKNOWN_GIB = 64  # memory limit of an export whose checkpoint size is unknown
# executed in a pod with any version of the image: size in bytes of the newest checkpoint, or of that of a step
CHECKPOINT_BYTES = """
import json, pathlib, sys
found = sorted(pathlib.Path(sys.argv[1]).glob("checkpoints/step-*/manifest.json"))
found = [each for each in found if not sys.argv[2] or int(each.parent.name.partition("-")[2]) == int(sys.argv[2])]
print(sum(file["size"] for file in json.loads(found[-1].read_bytes())["files"]) if found else 0)
"""
REPEATABLE = (ApiAwayError, NotFoundError, RefusedError)  # the connection broke, or the pod is gone or being deleted


class FetchReports:
    """Passes on the progress that `fetch_inputs` reports from a pod."""

    def __init__(self) -> None:
        self._buffer, self._error, self._is_mistake, self.complete = bytearray(), "", False, False

    def begin(self) -> None:
        """Start again after an interrupted fetch."""
        self._buffer.clear()
        self.complete = False

    def write(self, data: bytes) -> int:
        """Process the next chunk of the answer."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in map(json.loads, filter(None, lines)):
            if "show" in line:
                progress.show(*line["show"])
            elif "notify" in line:
                progress.notify(line["notify"])
            else:
                self.complete, self._error, self._is_mistake = True, line.get("error", ""), line.get("mistake", False)
        return len(data)

    def check(self, volume: str) -> None:
        """Raise the error with which the fetch ended, if any."""
        if self._error:
            raise (ConfigError if self._is_mistake else BackendError)(f"{volume}: {self._error}")


Output = SyncWriter | FetchReports | io.BytesIO | None


class Reader:
    """Reads, and writes small files, on a volume that only pods mount."""

    def __init__(self, kube: Kubernetes, profile: K8sProfile) -> None:
        self.kube, self.profile = kube, profile
        self._job = render_reader(profile)
        self._pod = self._own_pod = ""  # the pod that answered last; the newest one that only reads

    def fetch(
        self, run: RunDir, wanted: Sequence[str] = (), write: Mapping[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Update this machine's copies of a run and of the runs `beside` it (ids).

        Large folders are copied only if they are in `wanted`; `write` maps small files to write there first to their content.
        Raises BackendError if a directory that existed before is gone.
        """
        request = {**request_of(run.path, beside), "with": list(wanted), "write": write or {}}
        directory = f"{self.profile.claim_path}/{run.id}"
        writer, attempts, is_cancelled = SyncWriter(run.path, beside), run.attempts(), run.cancel_requested
        command = module_command("ropewalk.k8s.volume.sync_server", directory, python=self.profile.python)
        try:
            self._execute(run, command, json.dumps(request).encode(), writer)
        finally:
            if is_cancelled and not run.cancel_requested and run.attempts() == attempts:
                run.request_cancel()  # it was made here alone, in a file that the volume's copy has replaced
        if writer.absent and (request["have"] or write):
            location = f"{directory} on volume {self.profile.claim} of namespace {self.kube.namespace}"
            raise BackendError(f"{location}: no such directory; was it deleted, or does the profile name another volume?")
        writer.remember()

    def upload(self, run: RunDir, archive: bytes, folder: str) -> None:
        """Write a copy of the code to `folder` below the runs directory of the volume, unless it exists."""
        target = f"{self.profile.claim_path}/{folder}"
        command = module_command("ropewalk.k8s.submission.stage_in", "-", target, python=self.profile.python)
        self._execute(run, command, archive, None)

    def fill(self, wanted: Sequence[tuple[str, str]], store: str, access: Mapping[str, str | None]) -> None:
        """Let a pod fetch inputs into a store on the volume, and report its progress. `access`: the hub's address, and a token.

        Raises ConfigError for what the hub refuses, BackendError if the pod cannot fetch.
        """
        log.info("fetching into volume %s of namespace %s", self.profile.claim, self.kube.namespace)
        command = module_command("ropewalk.k8s.volume.fetch_inputs", store, python=self.profile.python)
        request = json.dumps({"wanted": [list(item) for item in wanted], **access}).encode() + b"\n"
        reports = FetchReports()
        self._execute(None, command, request, reports)
        reports.check(f"volume {self.profile.claim} of namespace {self.kube.namespace}")

    def run(self, module: str, stdin: BinaryIO, stdout: BinaryIO) -> None:
        """Run a module in a pod that mounts the volume, and the claims of data, with the runs' root as its argument."""
        pod_with_data = Reader(self.kube, self.profile)
        pod_with_data._job = render_reader(self.profile, data=True)
        pod = pod_with_data._reader_pod()
        with pod_with_data._lease():
            self.kube.execute(pod, module_command(module, self.profile.claim_path, python=self.profile.python), stdin, stdout)

    def export(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> None:
        """Let a pod export the run's model, and download it: tokenizer and checkpoint are readable only in pods."""
        require_empty(directory)
        exporter = self._create_exporter(run, step)
        try:
            exporter._download_model(run, directory, step, options)
        finally:
            self.kube.delete("Job", exporter._job["metadata"]["name"])

    def _create_exporter(self, run: RunDir, step: int | None) -> "Reader":
        """Create a reader for one export. Other pods lack the memory: a run's is used for training, a reader's is too small."""
        size = io.BytesIO()
        command = [self.profile.python, "-c", CHECKPOINT_BYTES, f"{self.profile.claim_path}/{run.id}", str(step or "")]
        self._execute(run, command, None, size)
        exporter = Reader(self.kube, self.profile)
        exporter._job = render_exporter(self.profile, int(size.getvalue() or b"0"))
        exporter._pod = exporter._reader_pod()
        return exporter

    def _download_model(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str]) -> None:
        folder = f"/tmp/export-{secrets.token_hex(4)}"  # noqa: S108 - in the pod, which nobody else uses
        run_path, python = f"{self.profile.claim_path}/{run.id}", self.profile.python
        command = module_command("ropewalk.jobs.models.cards.export", run_path, folder, python=python)
        self._execute(run, [*command, *(["--step", str(step)] if step is not None else []), *options], None, None)
        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        writer = SyncWriter(partial)
        self._execute(run, module_command("ropewalk.k8s.volume.sync_server", folder, python=python), b"{}", writer)
        if writer.absent:
            raise BackendError(f"{run.id}: the exporting pod was replaced before the download was complete; export again")
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)  # atomic

    def _execute(self, run: RunDir | None, command: list[str], stdin: bytes | None, stdout: Output) -> None:
        """Run a command in a pod of `run` or in a reader's, again in another pod if the connection breaks."""
        pod = self._pod or (self._find_pod(run) if run else self._reader_pod())
        if run is not None:
            _log_pod(run.id, f"volume {self.profile.claim} of namespace {self.kube.namespace}", pod)
        for tries_left in (2, 1, 0):
            try:
                with self._lease() if pod == self._own_pod else nullcontext():
                    self._execute_once(pod, command, stdin, stdout)
                break
            except BackendError as error:
                self._pod = ""
                answered = pod == self._own_pod and not isinstance(error, REPEATABLE)
                if answered or not tries_left:
                    raise
                log.info("%s; retrying", error)
            time.sleep(POLL_SECONDS)
            pod = self._reader_pod()  # the run's own pod has ended, or the connection broke
        self._pod = pod

    def _execute_once(self, pod: str, command: list[str], stdin: bytes | None, writer: Output) -> None:
        if isinstance(writer, (SyncWriter, FetchReports)):
            writer.begin()
        elif writer is not None:
            writer.seek(0)
            writer.truncate()
        source = io.BytesIO(stdin) if stdin is not None else None
        self.kube.execute(pod, command, source, cast("BinaryIO | None", writer))
        if (
            isinstance(writer, (SyncWriter, FetchReports)) and not writer.complete
        ):  # a pod that is being deleted may end it without an error
            raise ApiAwayError(f"reading through pod {pod} was interrupted; try again")

    @contextmanager
    def _lease(self) -> Iterator[None]:
        """Extend the deadline of the reader's pod while it is used."""
        over, job = threading.Event(), self._job["metadata"]["name"]

        def extend() -> None:
            while not over.wait(LEASE_SECONDS):
                try:
                    seconds = self.kube.get("Job", job)["spec"]["activeDeadlineSeconds"] + LEASE_SECONDS
                    self.kube.patch("Job", job, {"spec": {"activeDeadlineSeconds": seconds}})
                except BackendError as error:
                    log.warning("the pod that reads the volume may end too early: %s", error)

        thread = threading.Thread(target=extend, name="reader-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _find_pod(self, run: RunDir) -> str:
        """Return a pod that mounts the volume: one of the run, else the reader's own, created if needed."""
        return self._ready_pod(f"{COMMON_SELECTOR},{RUN_LABEL}={run.id}") or self._reader_pod()

    def _ready_pod(self, labels: str) -> str:
        for pod in self.kube.list("Pod", labels, "status.phase=Running"):
            if _usable(pod):
                return str(pod["metadata"]["name"])
        return ""

    def _reader_pod(self) -> str:
        """Return the pod of this user's reader for this profile, created if needed; those of others mount other volumes."""
        name = self._job["metadata"]["name"]
        self._own_pod = self._ready_pod(f"batch.kubernetes.io/job-name={name}") or self._wait_for(self._create_job())
        return self._own_pod

    def _create_job(self) -> str:
        return str(create_or_adopt(self.kube, self._job)["metadata"]["name"])

    def _wait_for(self, job: str) -> str:
        deadline = time.monotonic() + READY_SECONDS
        reason = ""
        while time.monotonic() < deadline:
            for pod in self.kube.list("Pod", f"batch.kubernetes.io/job-name={job}"):
                if _usable(pod):
                    return str(pod["metadata"]["name"])
                reason = str(pod_reason(pod) or reason)
            try:
                self.kube.get("Job", job)
            except NotFoundError:  # the existing one has just ended, or its pod could not start
                job = self._create_job()
            time.sleep(POLL_SECONDS)
        self.kube.delete("Job", job)
        raise BackendError(
            f"the pod that reads the volume did not start within {READY_SECONDS:.0f} s: {reason or 'it is not ready'}"
        )


@cache
def _log_pod(run_id: str, volume: str, pod: str) -> None:
    """Log through which pod a run is read, once per process for all readers."""
    log.warning("%s is on %s, which is not mounted here; reading it through pod %s", run_id, volume, pod)


def render_reader(profile: K8sProfile, *, data: bool = False) -> Object:
    """Render the Job of a pod that only mounts the volume: one per user and profile, without Secrets and permissions.

    `data`: it also mounts the claims of data.
    """
    job = load_job("volume-reader.yaml")
    labels = {**COMMON_LABELS, ROLE_LABEL: "reader"}
    mounts = profile.mounts if data else ()
    identity = f"{getuser()} {profile.model_dump_json()}{' data' if mounts else ''}"
    name = f"{READER}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    job["metadata"] |= {"name": name, "labels": labels}
    if profile.namespace:
        job["metadata"]["namespace"] = profile.namespace
    pod = job["spec"]["template"]
    pod["metadata"]["labels"] = labels
    container = pod["spec"]["containers"][0]
    container["command"] = [profile.python, "-c", "import signal; signal.pause()"]
    container["env"] += [{"name": name, "value": value} for name, value in profile.environment.items()]
    plain = profile.model_copy(update={"secrets": (), "service_account": None, "mounts": mounts})
    job["spec"]["template"] = apply_profile(pod, plain)
    return job


def render_exporter(profile: K8sProfile, checkpoint_bytes: int) -> Object:
    """Render the Job of a pod for one export, with memory for a whole checkpoint including the optimizer's state."""
    job = render_reader(profile)
    job["metadata"]["name"] += f"-{secrets.token_hex(3)}"
    resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    resources["requests"]["memory"] = f"{LEAST_MIB + math.ceil(checkpoint_bytes / MIB)}Mi"
    resources["limits"]["memory"] = f"{SPARE_GIB + math.ceil(checkpoint_bytes / GIB) if checkpoint_bytes else UNKNOWN_GIB}Gi"
    return job


def _usable(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return "deletionTimestamp" not in pod["metadata"] and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
