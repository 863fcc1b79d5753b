"""The ray engine: a Ray cluster on the nodes of the allocation, with the driver on the first node.

On shared machines every run has its own ports, its own short temporary directory (socket paths are limited to 107 bytes)
and its own token, and kills only processes that it has started.
"""

import logging
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import psutil

from ropewalk.cluster.engines.process import run_process
from ropewalk.cluster.errors import EXIT_FAILED, EXIT_REQUEUE, EXIT_TERMINATED, NotReadyError, StopRequested
from ropewalk.cluster.fresh_reads import read_afresh, read_json_afresh
from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.kill import end, family, processes_of
from ropewalk.cluster.process.ports import free_port, node_cpus
from ropewalk.cluster.process.scratch import make_scratch, remove_scratch
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run import names
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.succession import read_mark_afresh, write_mark
from ropewalk.cluster.secrets.variables import NO_SECRETS, RunSecrets

log = logging.getLogger(__name__)

START_SECONDS = 90.0
WATCH_SECONDS = 0.5
STARTED = "Ray has started"  # printed once the node's Ray answers
LONGEST_SCRATCH = 30  # bytes; Ray's socket paths below it take up to 75 more
OBJECT_STORE_BYTES = 256 * 2**20  # enough, since documents do not pass through it


@dataclass(frozen=True, kw_only=True)
class RayNode:
    """One node of a Ray cluster."""

    run: RunDir
    attempt: int
    index: int
    num_nodes: int
    address: str
    cpus: int | None
    gpus: int
    stop_flag: Path
    secrets: RunSecrets = NO_SECRETS
    for_tune: bool = False  # no workers started in advance, and no forwarding of worker logs

    @property
    def folder(self) -> Path:
        """Directory of the attempt, shared by all nodes."""
        return self.run.attempt_dir(self.attempt)

    @cached_property
    def ip(self) -> str:
        """Numeric address of the node, since Ray does not accept host names."""
        return socket.gethostbyname(self.address)


def run_ray(node: RayNode) -> int:
    """Start this node's Ray, run the driver (first node) or wait for its end (other nodes), and return the exit code."""
    scratch = short_scratch()
    ray: subprocess.Popen[bytes] | None = None
    try:
        if node.index == 0:
            with _Head(node, scratch) as head:
                await_nodes(node)
                code = run_process(node.run, node.attempt, node.stop_flag, node.secrets, {"RAY_ADDRESS": head.address})
            write_json(node.folder / names.RAY_DRIVER, {"exit_code": code})
            return code
        ray = start_ray(node, scratch, head=False)
        write_mark(node.folder / names.NODES / f"ray-{node.index}", 1)
        return await_driver(node, ray)
    except StopRequested as stop:
        log.info("%s", stop)
        return EXIT_REQUEUE
    finally:
        if ray is not None:
            stop_ray(ray, scratch)
        remove_scratch(scratch)


class _Head:
    """The first node's Ray. If it ends while the driver runs, it is started again under the same address, without its former
    actors: `starts` in the published file tells a driver that can continue.
    """

    def __init__(self, node: RayNode, scratch: Path) -> None:
        self._node, self._scratch, self._starts, self._published = node, scratch, 1, 0
        self._ray = start_ray(node, scratch, head=True)
        self.address = (scratch / "address").read_text()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        stop_ray(self._ray, self._scratch)

    def _publish(self) -> None:
        write_json(self._node.folder / names.RAY_HEAD, {"address": self.address, "starts": self._starts})
        self._published = self._starts

    def _watch(self) -> None:
        while True:
            try:
                if self._ray.poll() is not None:
                    self._restart()
                if self._published != self._starts:
                    self._publish()
            except (NotReadyError, RuntimeError, OSError, StopRequested):
                log.exception("Ray is not available yet; the next attempt follows")
            if self._over.wait(WATCH_SECONDS):
                return

    def _restart(self) -> None:
        log.error("Ray ended with %s while the driver runs, and is started again", self._ray.returncode)
        stop_ray(self._ray, self._scratch)
        self._ray = start_ray(self._node, self._scratch, head=True, port=int(self.address.rpartition(":")[2]))
        self._starts += 1
        self._node.run.event("ray_restarted", node=self._node.index, attempt=self._node.attempt)


def short_scratch() -> Path:
    """Make a private directory with a short path, so that Ray's socket paths below it stay within 107 bytes."""
    parent = tempfile.gettempdir()
    return make_scratch("r", parent if len(parent) <= LONGEST_SCRATCH else "/tmp")  # noqa: S108


def start_command(node: RayNode, scratch: Path, head_address: str | None, port: int | None = None) -> list[str]:
    """Return the command that starts this node's Ray: the head node, at `port` if set, unless `head_address` is set."""
    command = module_command("ropewalk.cluster.engines.ray_start", f"--ip={node.ip}", f"--temp-dir={scratch}")
    command += [f"--cpus={node.cpus or node_cpus()}", f"--gpus={node.gpus}", f"--object-store-bytes={OBJECT_STORE_BYTES}"]
    if not node.for_tune:
        command.append("--follow-logs")
    return [*command, f"--head-port={port or free_port(node.ip)}" if head_address is None else f"--address={head_address}"]


def environment(node: RayNode) -> Mapping[str, str]:
    """Return the environment of Ray's daemons. The token in it comes from the backend and is never written to disk."""
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # may name a user's cluster
    variables |= node.secrets.environment
    variables.setdefault("RAY_worker_niceness", "0")  # with Ray's 15, any other program would take the CPU from a replica
    if node.ip.startswith("127."):
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
    if node.for_tune:
        variables["RAY_prestart_worker_first_driver"] = "0"
    return variables


def start_ray(node: RayNode, scratch: Path, *, head: bool, port: int | None = None) -> subprocess.Popen[bytes]:
    """Start Ray on this node, and wait until it answers. Raises StopRequested, NotReadyError, or RuntimeError with the reason."""
    head_address = None if head else await_head(node)
    command = start_command(node, scratch, head_address, port)
    output = node.run.log_dir(node.attempt) / f"ray-{node.index}.log"
    before = output.stat().st_size if output.exists() else 0  # what an earlier start has printed
    with child_output(output, node.secrets) as stream, stop_signals_blocked():
        ray = subprocess.Popen(
            command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment(node), start_new_session=True
        )

    def started() -> bool:
        if ray.poll() is not None:
            kind = NotReadyError if ray.returncode == EXIT_TERMINATED else RuntimeError
            raise kind(f"the start of Ray on node {node.index} failed with exit code {ray.returncode}: {tail(output)}")
        return STARTED.encode() in output.read_bytes()[before:]

    try:
        if not _wait(node, started):
            raise NotReadyError(f"the start of Ray on node {node.index} took more than {START_SECONDS:.0f} s: {tail(output)}")
    except BaseException:
        stop_ray(ray, scratch)
        raise
    if head:
        option = next(option for option in command if option.startswith("--head-port="))
        (scratch / "address").write_text(f"{node.ip}:{option.partition('=')[2]}")
    return ray


def _wait(node: RayNode, condition: Callable[[], bool]) -> bool:
    """Wait for a condition, and return True if it holds in time. Raises StopRequested if the run has to stop."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if node.stop_flag.exists():
            raise StopRequested("stop requested while Ray was starting: nothing to save")
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def tail(path: Path) -> str:
    """Return the last lines of a log, for an error message."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-5:]) or "the log is empty"


def await_head(node: RayNode) -> str:
    """Wait until the first node has published the head's address, and return it."""
    path = node.folder / names.RAY_HEAD
    if not _wait(node, lambda: bool(read_afresh(path))):
        raise NotReadyError(f"node {node.index}: the first node did not publish a Ray address within {START_SECONDS:.0f} s")
    return str((read_json_afresh(path) or {})["address"])


def await_nodes(node: RayNode) -> None:
    """Wait until every other node has joined. Raises NotReadyError."""
    marks = {index: node.folder / names.NODES / f"ray-{index}" for index in range(1, node.num_nodes)}
    if not _wait(node, lambda: all(read_mark_afresh(mark) for mark in marks.values())):
        late = [index for index, mark in marks.items() if not read_mark_afresh(mark)]
        raise NotReadyError(f"Ray did not start on nodes {late} within {START_SECONDS:.0f} s; see their ray-K.log")


def await_driver(node: RayNode, ray: subprocess.Popen[bytes]) -> int:
    """Wait until the driver on the first node has ended, and return its exit code."""
    pause_seconds = poll_seconds(node.folder)
    while True:
        if result := read_json_afresh(node.folder / names.RAY_DRIVER):
            return int(result["exit_code"])
        if ray.poll() is not None:
            log.error("Ray on node %d ended with %s", node.index, ray.returncode)
            return EXIT_REQUEUE if node.stop_flag.exists() else EXIT_FAILED
        time.sleep(pause_seconds)


def stop_ray(ray: subprocess.Popen[bytes], scratch: Path) -> None:
    """Kill this node's Ray processes: our descendants, and processes that use our temporary directory."""
    children = [process for process in family(ray.pid) if process.pid != ray.pid]
    ray.kill()
    ray.wait()
    count = end([process for process in {*children, *processes_of(scratch), *_writers_of(scratch)} if process.is_running()])
    log.info("Ray ended on this node (%d remaining processes were killed)", count)


def _writers_of(scratch: Path) -> Iterator[psutil.Process]:
    """Find orphaned Ray agents by their open log files, since their command line and environment are overwritten."""
    for process in psutil.process_iter():
        try:
            if process.name().startswith("ray::") and any(file.path.startswith(f"{scratch}/") for file in process.open_files()):
                yield process
        except psutil.Error:  # it has just ended, or belongs to another user
            continue
