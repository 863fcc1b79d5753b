"""Ledger of machines that failed, beside the runs: a file per user and cluster, and the machines that new runs avoid."""

import logging
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence, Set
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, parse_lines
from ropewalk.cluster.run.names import LEDGER_FOLDER

log = logging.getLogger(__name__)

NODE_VARIABLE = "NODE_NAME"  # name of the machine in a pod, whose host name is its own
SHARED = "shared"  # name of the file that an administrator may keep for all users
DAY_SECONDS = 86400.0
EXPIRY_SECONDS = 7 * DAY_SECONDS
LEAST_RUNS, LEAST_FAILURES = 2, 3  # either suffices
MOST_SHARE = 0.1  # of the nodes of a partition
TOGETHER_SECONDS, TOGETHER_NODES = 3600.0, 3  # so many failures at once have a common cause, such as a switch
SPOILER_NODES = 3  # a run that lost so many machines is the likelier cause
GPU_FAILURE = re.compile(r"uncorrectable ECC|fallen off the bus|GPU is lost|hardware stack error|Xid.*\b(48|79|94|95)\b", re.I)


class Cause(StrEnum):
    """Cause of a failure that lies in the machine, not in a program, a user or the scheduler."""

    DOWN = "down"  # the scheduler reports that the machine failed
    GPU = "gpu"  # an error of its hardware ended a rank
    CHECK = "check"  # a check before the first group found it
    CORRUPTION = "corruption"  # bits of a training changed there, twice; suffices alone


class Failure(NamedTuple):
    """A line of the ledger."""

    time: float
    node: str
    cause: str
    run: str
    attempt: int


class BadNode(NamedTuple):
    """A machine that has failed repeatedly."""

    node: str
    runs: int
    failures: int
    causes: tuple[str, ...]
    last: float  # seconds since the epoch
    until: float  # as long as it does not fail again


def machine_name() -> str:
    """Return the name by which the scheduler knows this machine."""
    return os.environ.get(NODE_VARIABLE) or socket.gethostname()


def record_failure(run: RunDir, attempt: int, node: str, cause: Cause) -> None:
    """Note the failure of a machine. A run goes on without it if that is impossible."""
    line = Failure(time.time(), node, cause.value, run.id, attempt)._asdict()
    path = _file(run.path.parent, str(run.record.get("cluster")), str(os.getuid()))
    try:
        path.parent.mkdir(exist_ok=True)
        if not path.parent.stat().st_mode & 0o002 and path.parent.stat().st_uid == os.getuid():
            path.parent.chmod(0o1777)  # users who share a runs directory have a file each
        append_line(path, line)
    except OSError as error:
        log.warning("%s: a failure of %s could not be noted: %s", path, node, error)


def record_gpu_failures(run: RunDir, attempt: int, hosts: Set[str]) -> None:
    """Note the machines among `hosts` on which errors of GPU hardware ended ranks of an attempt, once each."""
    messages = ((str(error.get("host")), str(error.get("message"))) for error in run.read_errors(attempt))
    for host in sorted({host for host, message in messages if GPU_FAILURE.search(message)} & hosts):
        record_failure(run, attempt, host, Cause.GPU)


def record_findings(run: RunDir, attempt: int, hosts: Mapping[int, str]) -> None:
    """Note the machines, by node, in which checks of an attempt found a cause of the machine's, once each."""
    findings = [event for event in run.read_events() if event["event"] == "node_finding" and event["attempt"] == attempt]
    for node in sorted({event["node"] for event in findings if event["machine"]} & hosts.keys()):
        record_failure(run, attempt, hosts[node], Cause.CHECK)


def read_failures(root: Path, cluster: str, user: int | None = None) -> list[Failure]:
    """Return a user's failures, and those in a file of the administrator's, which only its owner may write."""
    user = os.getuid() if user is None else user
    failures = _read(_file(root, cluster, str(user)), user)
    return sorted([*failures, *_read(_file(root, cluster, SHARED), 0)])


def counted_failures(failures: Sequence[Failure], now: float) -> dict[str, list[Failure]]:
    """Return the recent failures of each machine by itself.

    A failure does not count if several machines failed together, or its run lost several machines.
    """
    recent = [each for each in failures if now - EXPIRY_SECONDS < each.time <= now]
    lost_by_run: dict[str, set[str]] = {}
    for each in recent:
        lost_by_run.setdefault(each.run, set()).add(each.node)
    counted: dict[str, list[Failure]] = {}
    for each in recent:
        if len(lost_by_run[each.run]) < SPOILER_NODES and not _together(each, recent):
            counted.setdefault(each.node, []).append(each)
    return counted


def bad_nodes(failures: Sequence[Failure], now: float) -> list[BadNode]:
    """Return the machines that have failed repeatedly, the worst first."""
    bad = []
    for node, mine in counted_failures(failures, now).items():
        runs = len({each.run for each in mine})
        enough = runs >= LEAST_RUNS or len({(each.run, each.attempt) for each in mine}) >= LEAST_FAILURES
        if enough or any(each.cause == Cause.CORRUPTION for each in mine):
            last = max(each.time for each in mine)
            bad.append(BadNode(node, runs, len(mine), tuple(sorted({each.cause for each in mine})), last, last + EXPIRY_SECONDS))
    return sorted(bad, key=lambda each: (-each.runs, -each.failures, each.node))


def avoided(bad: Sequence[BadNode], nodes: Sequence[str]) -> list[str]:
    """Return which machines of a partition new runs avoid: the worst, and at most a tenth."""
    of_partition = [each.node for each in bad if each.node in set(nodes)]
    return of_partition[: int(len(nodes) * MOST_SHARE)]


def _together(failure: Failure, failures: Sequence[Failure]) -> bool:
    near = {each.node for each in failures if abs(each.time - failure.time) < TOGETHER_SECONDS}
    return len(near) >= TOGETHER_NODES


def _file(root: Path, cluster: str, owner: str) -> Path:
    return root / LEDGER_FOLDER / f"{cluster}-{owner}.jsonl"


def _read(path: Path, owner: int) -> list[Failure]:
    """Return the lines of a file, unless somebody else may write it."""
    try:
        status = path.stat()
        lines: list[dict[str, Any]] = parse_lines(path.read_bytes())[0]
    except OSError:
        return []
    if status.st_uid != owner or status.st_mode & 0o022:
        log.warning("%s: ignored, since others may write it", path)
        return []
    return [Failure(**{key: line[key] for key in Failure._fields}) for line in lines if set(Failure._fields) <= line.keys()]
