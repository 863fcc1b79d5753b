"""The ray engine: a Ray cluster over the allocation, the driver on its first node, and nothing left behind.

Ray on shared machines: every run has its own ports, its own short temporary directory (socket paths are limited
to 107 bytes), its own token, and ends only the processes that it started itself.
"""

import logging
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil

from ropewalk.cluster.engines.process import run_process
from ropewalk.cluster.errors import EXIT_FAILED, EXIT_REQUEUE, EXIT_TERMINATED, NotReadyError, StopRequested
from ropewalk.cluster.fresh_reads import read_afresh, read_json_afresh
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

log = logging.getLogger(__name__)

START_SECONDS = 90.0
STARTED = "Ray has started"  # what a node says that answers
LONGEST_SCRATCH = 30  # what Ray puts below it takes up to 75 bytes
OBJECT_STORE_BYTES = 256 * 2**20  # documents never travel through it; jobs that need more say so by their memory


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
    for_tune: bool = False  # its actors take none of the workers that Ray starts in advance, and nobody reads their output

    @property
    def folder(self) -> Path:
        """The attempt's directory, which every node sees."""
        return self.run.attempt_dir(self.attempt)

    @cached_property
    def ip(self) -> str:
        """The address as a number: Ray takes no host names."""
        return socket.gethostbyname(self.address)


def run_ray(node: RayNode) -> int:
    """Start this node's Ray; run the driver on the first node, wait for its end on the others. Returns the exit code."""
    scratch = short_scratch()
    ray: subprocess.Popen[bytes] | None = None
    try:
        if node.index == 0:
            ray = start_ray(node, scratch, head=True)
            address = (scratch / "address").read_text()
            write_json(node.folder / names.RAY_HEAD, {"address": address})
            await_nodes(node)
            code = run_process(node.run, node.attempt, node.stop_flag, {"RAY_ADDRESS": address})
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


def short_scratch() -> Path:
    """Make a private directory with a name so short that Ray's sockets below it stay within 107 bytes."""
    parent = tempfile.gettempdir()
    return make_scratch("r", parent if len(parent) <= LONGEST_SCRATCH else "/tmp")  # noqa: S108


def start_command(node: RayNode, scratch: Path, head_address: str | None) -> list[str]:
    """Return the command that starts this node's Ray, which is the head unless there is a head's address."""
    command = module_command("ropewalk.cluster.engines.ray_start", f"--ip={node.ip}", f"--temp-dir={scratch}")
    command += [f"--cpus={node.cpus or node_cpus()}", f"--gpus={node.gpus}", f"--object-store-bytes={OBJECT_STORE_BYTES}"]
    if not node.for_tune:
        command.append("--follow-logs")
    return [*command, f"--head-port={free_port(node.ip)}" if head_address is None else f"--address={head_address}"]


def environment(node: RayNode) -> Mapping[str, str]:
    """Return the environment of Ray's daemons. Their token comes from the backend and is never written down."""
    ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # a user's own cluster
    if node.ip.startswith("127."):
        ours["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
    if node.for_tune:
        ours["RAY_prestart_worker_first_driver"] = "0"
    return ours


def start_ray(node: RayNode, scratch: Path, *, head: bool) -> subprocess.Popen[bytes]:
    """Start Ray on this node and wait until it answers. Raises StopRequested, or an error that says why it did not."""
    head_address = None if head else await_head(node)
    command = start_command(node, scratch, head_address)
    output = node.run.log_dir(node.attempt) / f"ray-{node.index}.log"
    with output.open("ab") as stream, stop_signals_blocked():
        ray = subprocess.Popen(
            command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment(node), start_new_session=True
        )

    def started() -> bool:
        if ray.poll() is not None:
            kind = NotReadyError if ray.returncode == EXIT_TERMINATED else RuntimeError
            raise kind(f"the start of Ray on node {node.index} ended with {ray.returncode}: {tail(output)}")
        return STARTED in output.read_text(errors="replace")

    try:
        if not _wait(node, started):
            raise NotReadyError(f"the start of Ray on node {node.index} took more than {START_SECONDS:.0f} s: {tail(output)}")
    except BaseException:
        stop_ray(ray, scratch)
        raise
    if head:
        port = next(word.partition("=")[2] for word in command if word.startswith("--head-port="))
        (scratch / "address").write_text(f"{node.ip}:{port}")
    return ray


def _wait(node: RayNode, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; returns whether it came true in time. Raises StopRequested if the run is to stop meanwhile."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if node.stop_flag.exists():
            raise StopRequested("asked to stop while Ray started: there is nothing to save")
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def tail(path: Path) -> str:
    """Return the last lines of a log, for an error message."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-5:]) or "its log is empty"


def await_head(node: RayNode) -> str:
    """Wait until the first node has published the head's address, and return it."""
    path = node.folder / names.RAY_HEAD
    if not _wait(node, lambda: bool(read_afresh(path))):
        raise NotReadyError(f"node {node.index}: the first node published no Ray address within {START_SECONDS:.0f} s")
    return str((read_json_afresh(path) or {})["address"])


def await_nodes(node: RayNode) -> None:
    """Wait until every other node has joined; a failed start fails the attempt."""
    marks = {index: node.folder / names.NODES / f"ray-{index}" for index in range(1, node.num_nodes)}
    if not _wait(node, lambda: all(read_mark_afresh(mark) for mark in marks.values())):
        late = [index for index, mark in marks.items() if not read_mark_afresh(mark)]
        raise NotReadyError(f"Ray did not start on nodes {late} within {START_SECONDS:.0f} s; see their ray-K.log")


def await_driver(node: RayNode, ray: subprocess.Popen[bytes]) -> int:
    """Keep this node's Ray alive until the driver on the first node has ended; returns its exit code."""
    pause_seconds = poll_seconds(node.folder)
    while True:
        if found := read_json_afresh(node.folder / names.RAY_DRIVER):
            return int(found["exit_code"])
        if ray.poll() is not None:
            log.error("Ray on node %d ended with %s", node.index, ray.returncode)
            return EXIT_REQUEUE if node.stop_flag.exists() else EXIT_FAILED
        time.sleep(pause_seconds)


def stop_ray(ray: subprocess.Popen[bytes], scratch: Path) -> None:
    """Kill this node's Ray processes: our descendants, and those that name our temporary directory; nobody else's."""
    children = [process for process in family(ray.pid) if process.pid != ray.pid]
    ray.kill()
    ray.wait()
    count = end([process for process in {*children, *processes_of(scratch), *_writers_of(scratch)} if process.is_running()])
    log.info("Ray ended on this node (%d processes were left)", count)


def _writers_of(scratch: Path) -> Iterator[psutil.Process]:
    """Find Ray's agents whose parent is gone by their logs: they have neither a command line nor an environment."""
    for process in psutil.process_iter():
        try:
            if process.name().startswith("ray::") and any(file.path.startswith(f"{scratch}/") for file in process.open_files()):
                yield process
        except psutil.Error:  # it ended while we looked, or is another user's
            continue
