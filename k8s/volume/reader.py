"""Reads a run's files where this machine does not see the volume: through a pod of the run, or one that only reads."""

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
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes, NotFoundError, RefusedError
from ropewalk.k8s.api.create import create_or_adopt
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.job import apply_profile, load_job
from ropewalk.k8s.names import OUR_LABELS, OURS, ROLE_LABEL, RUN_LABEL
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.pending_reasons import pod_reason
from ropewalk.k8s.volume.sync_client import SyncWriter, request_of

log = logging.getLogger(__name__)

READY_SECONDS = 60.0  # of a pod whose image is there already; it may have to be pulled
POLL_SECONDS = 0.2
READER = "ropewalk-reader"
LEASE_SECONDS = 120  # by so much longer the pod lives, each time that so much has passed while it is read through
MIB, GIB = 1 << 20, 1 << 30
LEAST_MIB, SPARE_GIB = 768, 4  # what Python and torch take beside the model, and what they may
UNKNOWN_GIB = 64  # what an export may take whose checkpoints do not lie on the volume
# run in a pod, whatever version its image has: the size of the newest checkpoint, or of that of a step
CHECKPOINT_BYTES = """
import json, pathlib, sys
found = sorted(pathlib.Path(sys.argv[1]).glob("checkpoints/step-*/manifest.json"))
found = [each for each in found if not sys.argv[2] or int(each.parent.name.partition("-")[2]) == int(sys.argv[2])]
print(sum(file["size"] for file in json.loads(found[-1].read_bytes())["files"]) if found else 0)
"""
NOT_DONE = (ApiAwayError, NotFoundError, RefusedError)  # the connection broke, or the pod is gone or leaving


class Reader:
    """Reads, and writes a little, on a volume that only pods see."""

    def __init__(self, kube: Kubernetes, profile: K8sProfile) -> None:
        self.kube, self.profile = kube, profile
        self._job = render_reader(profile)
        self._pod = self._own = ""  # the pod that answered last; the newest of those that only read

    def fetch(
        self, run: RunDir, wanted: Sequence[str] = (), write: Mapping[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Bring this machine's copies of a run and of the runs `beside` it (ids) up to date.

        Large folders come only as far as they are `wanted`; `write` are small files to write there first. Raises BackendError
        where a directory that has been there is gone.
        """
        request = {**request_of(run.path, beside), "with": list(wanted), "write": write or {}}
        where = f"{self.profile.claim_path}/{run.id}"
        writer = SyncWriter(run.path, beside)
        words = module_command("ropewalk.k8s.volume.sync_server", where, python=self.profile.python)
        self._execute(run, words, json.dumps(request).encode(), writer)
        if writer.absent and (request["have"] or write):
            where = f"{where} on volume {self.profile.claim} of namespace {self.kube.namespace}"
            raise BackendError(f"{where}: there is no such directory; was it deleted, or does the profile name another volume?")
        writer.remember()

    def upload(self, run: RunDir, archive: bytes, folder: str) -> None:
        """Put a copy of the code on the volume, as `folder` below the runs' root, unless it is there."""
        words = module_command(
            "ropewalk.k8s.submission.stage_in", "-", f"{self.profile.claim_path}/{folder}", python=self.profile.python
        )
        self._execute(run, words, archive, None)

    def export(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> None:
        """Have a pod write the run's model, and bring it here: tokenizer and checkpoint lie where only pods see them."""
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"{directory}: is not an empty directory; name a new one")
        reader = self._for_export(run, step)
        try:
            reader._bring_model(run, directory, step, options)
        finally:
            self.kube.delete("Job", reader._job["metadata"]["name"])

    def _for_export(self, run: RunDir, step: int | None) -> "Reader":
        """A reader for one export: a run's pods have their memory for training, and those that only read hold no model."""
        size = io.BytesIO()
        words = [self.profile.python, "-c", CHECKPOINT_BYTES, f"{self.profile.claim_path}/{run.id}", str(step or "")]
        self._execute(run, words, None, size)
        made = Reader(self.kube, self.profile)
        made._job = render_exporter(self.profile, int(size.getvalue() or b"0"))
        made._pod = made._of_its_own()
        return made

    def _bring_model(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str]) -> None:
        there = f"/tmp/export-{secrets.token_hex(4)}"  # noqa: S108 - of the pod, which has it for itself
        words = module_command(
            "ropewalk.jobs.models.cards.export", f"{self.profile.claim_path}/{run.id}", there, python=self.profile.python
        )
        self._execute(run, [*words, *(["--step", str(step)] if step is not None else []), *options], None, None)
        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        writer = SyncWriter(partial)
        self._execute(run, module_command("ropewalk.k8s.volume.sync_server", there, python=self.profile.python), b"{}", writer)
        if writer.absent:
            raise BackendError(f"{run.id}: the pod that exported it was replaced before the model was here; export it again")
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)  # whole or not at all

    def _execute(self, run: RunDir, words: list[str], stdin: bytes | None, stdout: "SyncWriter | io.BytesIO | None") -> None:
        pod = self._pod or self._find(run)
        _tell(run.id, f"volume {self.profile.claim} of namespace {self.kube.namespace}", pod)
        for tries_left in (2, 1, 0):
            try:
                with self._lease() if pod == self._own else nullcontext():
                    self._once(pod, words, stdin, stdout)
                break
            except BackendError as error:
                self._pod = ""
                answered = pod == self._own and not isinstance(error, NOT_DONE)
                if answered or not tries_left:
                    raise
                log.info("%s; once more", error)
            time.sleep(POLL_SECONDS)
            pod = self._of_its_own()  # the run's own has ended meanwhile, or the connection broke
        self._pod = pod

    def _once(self, pod: str, words: list[str], stdin: bytes | None, writer: "SyncWriter | io.BytesIO | None") -> None:
        if isinstance(writer, SyncWriter):
            writer.begin()
        elif writer is not None:
            writer.seek(0)
            writer.truncate()
        source = io.BytesIO(stdin) if stdin is not None else None
        self.kube.execute(pod, words, source, cast("BinaryIO | None", writer))
        if isinstance(writer, SyncWriter) and not writer.complete:  # a pod that leaves may end it without an error
            raise ApiAwayError(f"reading through pod {pod} ended half-way; again may help")

    @contextmanager
    def _lease(self) -> Iterator[None]:
        """Keep the pod that only reads alive while it is read through; by itself it ends after a while."""
        over, job = threading.Event(), self._job["metadata"]["name"]

        def extend() -> None:
            while not over.wait(LEASE_SECONDS):
                try:
                    seconds = self.kube.get("Job", job)["spec"]["activeDeadlineSeconds"] + LEASE_SECONDS
                    self.kube.patch("Job", job, {"spec": {"activeDeadlineSeconds": seconds}})
                except BackendError as error:
                    log.warning("the pod that reads the volume may end before it is done: %s", error)

        thread = threading.Thread(target=extend, name="reader-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _find(self, run: RunDir) -> str:
        """A pod that sees the volume: one of the run, else the reader's own, which is made if need be."""
        return self._ready_pod(f"{OUR_LABELS},{RUN_LABEL}={run.id}") or self._of_its_own()

    def _ready_pod(self, labels: str) -> str:
        for pod in self.kube.list("Pod", labels, "status.phase=Running"):
            if _usable(pod):
                return str(pod["metadata"]["name"])
        return ""

    def _of_its_own(self) -> str:
        """The pod of this user's reader for this profile, made if need be: those of others see other volumes."""
        name = self._job["metadata"]["name"]
        self._own = self._ready_pod(f"batch.kubernetes.io/job-name={name}") or self._wait_for(self._made())
        return self._own

    def _made(self) -> str:
        return str(create_or_adopt(self.kube, self._job)["metadata"]["name"])

    def _wait_for(self, job: str) -> str:
        deadline = time.monotonic() + READY_SECONDS
        said = ""
        while time.monotonic() < deadline:
            for pod in self.kube.list("Pod", f"batch.kubernetes.io/job-name={job}"):
                if _usable(pod):
                    return str(pod["metadata"]["name"])
                said = str(pod_reason(pod) or said)
            try:
                self.kube.get("Job", job)
            except NotFoundError:  # the one that was there has just ended, or its pod could not start
                job = self._made()
            time.sleep(POLL_SECONDS)
        self.kube.delete("Job", job)
        raise BackendError(
            f"the pod that reads the volume did not start within {READY_SECONDS:.0f} s: {said or 'it is not ready'}"
        )


@cache
def _tell(run_id: str, volume: str, pod: str) -> None:
    """Say once per process, however many readers it has, through which pod a run is read."""
    log.warning("%s lies on %s, which this machine does not see; pod %s does", run_id, volume, pod)


def render_reader(profile: K8sProfile) -> Object:
    """The Job of a pod that does nothing but see the volume: one per user and profile, with neither Secrets nor rights."""
    job = load_job("volume-reader.yaml")
    labels = {**OURS, ROLE_LABEL: "reader"}
    name = f"{READER}-{hashlib.sha256(f'{getuser()} {profile.model_dump_json()}'.encode()).hexdigest()[:8]}"
    job["metadata"] |= {"name": name, "labels": labels}
    if profile.namespace:
        job["metadata"]["namespace"] = profile.namespace
    pod = job["spec"]["template"]
    pod["metadata"]["labels"] = labels
    container = pod["spec"]["containers"][0]
    container["command"] = [profile.python, "-c", "import signal; signal.pause()"]
    container["env"] += [{"name": name, "value": value} for name, value in profile.environment.items()]
    plain = profile.model_copy(update={"secrets": (), "service_account": None, "mounts": ()})
    job["spec"]["template"] = apply_profile(pod, plain)
    return job


def render_exporter(profile: K8sProfile, checkpoint_bytes: int) -> Object:
    """The Job of a pod for one export, with memory for a whole checkpoint, the optimizer's state included."""
    job = render_reader(profile)
    job["metadata"]["name"] += f"-{secrets.token_hex(3)}"
    resources = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    resources["requests"]["memory"] = f"{LEAST_MIB + math.ceil(checkpoint_bytes / MIB)}Mi"
    resources["limits"]["memory"] = f"{SPARE_GIB + math.ceil(checkpoint_bytes / GIB) if checkpoint_bytes else UNKNOWN_GIB}Gi"
    return job


def _usable(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return "deletionTimestamp" not in pod["metadata"] and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
