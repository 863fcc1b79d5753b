"""A run's files, where this machine does not see the volume: read through a pod of the run, or one that only does that."""

import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from getpass import getuser
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from cluster.errors import BackendError, ConfigError
from cluster.run_dir import RunDir
from k8s.client import ApiAwayError, Kubernetes, NotFoundError, Object
from k8s.manifest import OURS, ROLE_LABEL, RUN_LABEL, dress, load
from k8s.profile import K8sProfile
from k8s.submit import create_or_adopt
from k8s.troubles import pod_trouble

log = logging.getLogger(__name__)

READY_SECONDS = 60.0  # of a pod whose image is there already; it may have to be pulled
POLL_SECONDS = 0.2
READER = "ropewalk-reader"


class Reader:
    """Reads, and writes a little, on a volume that only pods see."""

    def __init__(self, kube: Kubernetes, profile: K8sProfile) -> None:
        self.kube, self.profile = kube, profile
        self._pod = ""
        self._told = False

    def fetch(
        self, run: RunDir, wanted: Sequence[str] = (), write: dict[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Bring this machine's copy of the run's directory up to date; large folders only as far as they are wanted.

        So it does with those of the runs `beside` it, by id.
        """
        others = {name: _have(run.path.parent / name) for name in beside}
        request = {"have": _have(run.path), "with": list(wanted), "write": write or {}, "beside": others}
        where = f"{self.profile.claim_path}/{run.id}"
        sink = Sink(run.path, beside)
        words = [self.profile.python, "-m", "k8s.reading", where]
        self._execute(run, words, json.dumps(request).encode(), sink)
        if not sink.complete:
            raise BackendError(f"{run.id}: reading {where} through pod {self._pod} ended half-way; again may help")

    def upload(self, run: RunDir, archive: bytes, folder: str) -> None:
        """Put the copy of the code on the volume, unless it is there."""
        words = [self.profile.python, "-m", "k8s.unpack", "-", f"{self.profile.claim_path}/{folder}"]
        self._execute(run, words, archive, None)

    def export(self, run: RunDir, directory: Path, step: int | None) -> None:
        """Have a pod write the run's model, and bring it here: tokenizer and checkpoint lie where only pods see them."""
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"{directory}: is not an empty directory; name a new one")
        self._pod = self._of_its_own()  # a run's own pod has its memory for training
        there = f"/tmp/export-{secrets.token_hex(4)}"  # noqa: S108 - of the pod, which has it for itself
        words = [self.profile.python, "-m", "jobs.cli", "export", f"{self.profile.claim_path}/{run.id}", there]
        self._execute(run, [*words, *(["--step", str(step)] if step is not None else [])], None, None)
        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        sink = Sink(partial)
        self._execute(run, [self.profile.python, "-m", "k8s.reading", there], b"{}", sink)
        self._execute(run, [self.profile.python, "-c", f"import shutil; shutil.rmtree({there!r})"], None, None)
        if not sink.complete:
            raise BackendError(f"{run.id}: bringing the model here ended half-way; again may help")
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)  # whole or not at all

    def _execute(self, run: RunDir, words: list[str], stdin: bytes | None, stdout: "Sink | None") -> None:
        pod = self._pod or self._find(run)
        if not self._told:
            volume = f"volume {self.profile.claim} of namespace {self.kube.namespace}"
            log.warning("%s lies on %s, which this machine does not see; pod %s does", run.id, volume, pod)
            self._told = True
        for tries_left in (2, 1, 0):
            try:
                self._once(pod, words, stdin, stdout)
                break
            except BackendError as error:
                self._pod = ""
                answered = pod.startswith(READER) and not isinstance(error, ApiAwayError)
                if answered or not tries_left:
                    raise
            time.sleep(POLL_SECONDS)
            pod = self._of_its_own()  # the run's own has ended meanwhile, or the connection broke
        self._pod = pod

    def _once(self, pod: str, words: list[str], stdin: bytes | None, sink: "Sink | None") -> None:
        if sink is not None:
            sink.begin()
        source = io.BytesIO(stdin) if stdin is not None else None
        self.kube.execute(pod, words, source, cast("BinaryIO | None", sink))

    def _lives(self, pod: str) -> bool:
        try:
            return _usable(self.kube.get("Pod", pod))
        except NotFoundError:
            return False

    def _find(self, run: RunDir) -> str:
        """A pod that sees the volume: one of the run, or the reader's, which is made if need be."""
        ours = ",".join(f"{key}={value}" for key, value in OURS.items())
        return self._ready_pod(f"{ours},{RUN_LABEL}={run.id}") or self._of_its_own()

    def _ready_pod(self, labels: str) -> str:
        for pod in self.kube.list("Pod", labels, "status.phase=Running"):
            if _usable(pod):
                return str(pod["metadata"]["name"])
        return ""

    def _of_its_own(self) -> str:
        """The reader's pod."""
        if pod := self._ready_pod(f"{ROLE_LABEL}=reader"):
            return pod
        job = create_or_adopt(self.kube, render_reader(self.profile))
        return self._wait_for(job["metadata"]["name"])

    def _wait_for(self, job: str) -> str:
        deadline = time.monotonic() + READY_SECONDS
        said = ""
        while time.monotonic() < deadline:
            for pod in self.kube.list("Pod", f"batch.kubernetes.io/job-name={job}"):
                if _usable(pod):
                    return str(pod["metadata"]["name"])
                said = str(pod_trouble(pod) or said)
            try:
                self.kube.get("Job", job)
            except NotFoundError:  # the one that was there has just ended
                return self._wait_for(create_or_adopt(self.kube, render_reader(self.profile))["metadata"]["name"])
            time.sleep(POLL_SECONDS)
        self.kube.delete("Job", job)
        raise BackendError(
            f"the pod that reads the volume did not start within {READY_SECONDS:.0f} s: {said or 'it is not ready'}"
        )


class Sink:
    """Takes what `k8s.reading` sends, piece by piece, and writes it into this machine's copies of the run and those beside it."""

    def __init__(self, root: Path, beside: Sequence[str] = ()) -> None:
        self.root, self.complete = root, False
        self._places = {"": root, **{name: root.parent / name for name in beside}}
        self._buffer = bytearray()
        self._header: dict[str, Any] | None = None
        self._left = 0
        self._file: IO[bytes] | None = None

    def begin(self) -> None:
        """Forget the half of an answer that was cut off."""
        if self._file is not None:
            self._file.close()
        self.complete, self._header, self._file = False, None, None
        self._buffer.clear()

    def write(self, data: bytes) -> int:
        """Take the next piece."""
        self._buffer += data
        while self._step():
            pass
        return len(data)

    def _step(self) -> bool:
        if self._header is None:
            line, newline, rest = self._buffer.partition(b"\n")
            if not newline:
                return False
            self._buffer = rest
            header = json.loads(line)
            if header.get("end"):
                self.complete = True
                return False
            self._open(header)
        assert self._file is not None
        piece = self._buffer[: self._left]
        self._file.write(piece)
        self._left -= len(piece)
        del self._buffer[: len(piece)]
        if self._left:
            return False
        self._close()
        return True

    def _open(self, header: dict[str, Any]) -> None:
        path = self._place(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._header, self._left = header, header["size"]
        if header["offset"]:
            self._file = path.open("r+b")
            self._file.seek(header["offset"])
        else:
            self._file = path.with_name(f".{path.name}.part").open("wb")

    def _close(self) -> None:
        assert self._header is not None
        assert self._file is not None
        path = self._place(self._header)
        self._file.close()
        if not self._header["offset"]:
            path.with_name(f".{path.name}.part").replace(path)
        os.utime(path, ns=(self._header["mtime_ns"], self._header["mtime_ns"]))
        self._header = self._file = None

    def _place(self, header: Mapping[str, Any]) -> Path:
        root = self._places.get(header.get("run", ""))
        path = ((root or self.root) / str(header["path"])).resolve()
        if root is None or not path.is_relative_to(root.resolve()):
            raise BackendError(f"a pod sent {header['path']!r}, which does not lie in the run's directory")
        return path


def render_reader(profile: K8sProfile) -> Object:
    """The Job of a pod that sees the volume; one a user."""
    job = load("reader.yaml")
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
    job["spec"]["template"] = dress(pod, plain)
    return job


def _have(root: Path) -> dict[str, tuple[int, int]]:
    """What this machine's copy holds already."""
    found = {}
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                status = path.stat()
                found[str(path.relative_to(root))] = (status.st_size, status.st_mtime_ns)
    return found


def _usable(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return "deletionTimestamp" not in pod["metadata"] and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
