"""Partitions, nodes, reservations, settings and limits of a Slurm cluster, parsed from the output of its commands."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ropewalk.cluster.errors import BackendError
from ropewalk.slurm.commands import QUESTION_SECONDS, Slurm
from ropewalk.slurm.times import minutes_of, seconds_of

FREE = ("idle", "plnd")
USABLE = ("idle", "plnd", "mix", "alloc", "comp", "resv", "power", "pow")
USAGE_FORMAT = "%q|%a|%D|%C|%b"  # QoS, account, nodes, CPUs, GPUs of a running job


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A line of `scontrol show partition`."""

    name: str
    state: str
    default: bool
    max_nodes: int | None
    max_minutes: float | None
    grace_seconds: float
    preempt_mode: str
    nodes: int
    exclusive: bool = False  # jobs get whole nodes
    qos: str = ""  # a QoS whose limits apply to all jobs of the partition
    gpus_bring_cores: bool = False  # a job gets a number of cores with each GPU (DefCpuPerGPU)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a partition."""

    name: str
    state: str  # sinfo's short form
    cpus: int
    idle_cpus: int
    memory_mib: int
    gpus: int

    @property
    def free(self) -> bool:
        """Return True if the node responds and runs no job."""
        return self.state.startswith(FREE) and not self.state.endswith("*")

    @property
    def usable(self) -> bool:
        """Return True unless the node is drained, down or not responding."""
        return self.state.startswith(USABLE) and not self.state.endswith("*")


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A line of `scontrol show reservation`."""

    name: str
    start: float  # seconds since the epoch
    end: float
    maintenance: bool
    nodes: int
    partition: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of a QoS or an association, and its current use."""

    owner: str  # QoS small, account lab
    name: str  # MaxJobsPU, GrpTRES
    unit: str  # job, node, cpu, gres/gpu
    most: int
    used: int


def partitions(slurm: Slurm) -> list[Partition]:
    """Return all partitions of the cluster."""
    text = slurm.ask("scontrol", "--oneliner", "show", "partition", seconds=QUESTION_SECONDS)
    return [_partition(fields) for fields in _records(text)]


def used_partitions(slurm: Slurm, wanted: str | None) -> list[Partition]:
    """Return the partitions that a job may go to: those named in `wanted` (a,b), or the default partition if None."""
    names = wanted.split(",") if wanted else None
    return [partition for partition in partitions(slurm) if (partition.default if names is None else partition.name in names)]


def nodes(slurm: Slurm, partition: str) -> list[Node]:
    """Return the nodes of a partition."""
    text = slurm.ask(
        "sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%t|%C|%m|%G", seconds=QUESTION_SECONDS
    )  # %C: allocated/idle/other/total CPUs
    return [_node(line.split("|")) for line in text.splitlines() if line.count("|") == 4 and line.count("/") >= 3]


def reservations(slurm: Slurm) -> list[Reservation]:
    """Return all present and future reservations of the cluster."""
    text = slurm.ask("scontrol", "--oneliner", "show", "reservation", seconds=QUESTION_SECONDS)
    return [_reservation(fields) for fields in _records(text) if "ReservationName" in fields]


def settings(slurm: Slurm) -> dict[str, str]:
    """Return the cluster's configuration (`scontrol show config`)."""
    lines = slurm.ask("scontrol", "show", "config", seconds=QUESTION_SECONDS).splitlines()
    return {key.strip(): value.strip() for key, separator, value in (line.partition("=") for line in lines) if separator}


def limits(slurm: Slurm, user: str, account: str | None, qos: str | None) -> list[Limit]:
    """Return the limits of a user's association and QoS, with what the user's running jobs use of them.

    `scontrol show assoc_mgr` would count better, but without accounting it crashes the controller (24.11).
    """
    if not account:
        account = accounting_rows(slurm, "user", user, "DefaultAccount")[0][0]
    rows = accounting_rows(slurm, "assoc", f"user={user}", f"account={account}", "DefaultQOS,MaxJobs,GrpJobs,GrpTRES")
    name = qos or rows[0][0] or "normal"
    answer = slurm.ask(
        "squeue", "--noheader", f"--user={user}", "--states=RUNNING", f"--format={USAGE_FORMAT}", seconds=QUESTION_SECONDS
    )
    mine = [line.split("|") for line in answer.splitlines() if line.count("|") == 4]
    all_limits: list[Limit] = []
    for _, *values in rows:
        used = _used([job for job in mine if job[1] == account])
        all_limits += _limits(f"account {account}", ("MaxJobs", "GrpJobs", "GrpTRES"), values, used)
    for values in accounting_rows(slurm, "qos", name, "MaxJobsPU,MaxTRESPU"):
        used = _used([job for job in mine if job[0] == name])
        all_limits += _limits(f"QoS {name}", ("MaxJobsPU", "MaxTRESPU"), values, used)
    return all_limits


def accounting_rows(slurm: Slurm, entity: str, *arguments: str) -> list[list[str]]:
    """Query accounting; the last argument lists the columns. Raises BackendError, also if there are no rows."""
    *conditions, columns = arguments
    command = ["sacctmgr", "--noheader", "--parsable2", "show", entity, *conditions, f"format={columns}"]
    text = slurm.ask(*command, seconds=QUESTION_SECONDS)
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == columns.count(",")]
    if not rows:
        raise BackendError(f"accounting has no {entity} {' '.join(conditions)}")
    return rows


def _used(jobs: Sequence[Sequence[str]]) -> dict[str, int]:
    used = {"job": len(jobs), "node": 0, "cpu": 0, "gres/gpu": 0}
    for _, _, node_count, cpus, gres in jobs:
        used["node"] += int(node_count)
        used["cpu"] += int(cpus)
        used["gres/gpu"] += int(node_count) * _gpus(gres)
    return used


def _limits(owner: str, names: Sequence[str], values: Sequence[str], used: Mapping[str, int]) -> Iterator[Limit]:
    for name, value in zip(names, values, strict=True):
        pairs = [("job", value)] if value.isdigit() else re.findall(r"([\w/]+)=(\d+)", value)
        for unit, most in pairs:
            if unit in used:
                yield Limit(owner=owner, name=name, unit=unit, most=int(most), used=used[unit])


def _gpus(gres: str) -> int:
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", gres))


def largest_job(slurm: Slurm, qos: str) -> tuple[int | None, float | None]:
    """Return the (nodes, minutes) that a QoS allows one job; None means no limit."""
    tres, wall = accounting_rows(slurm, "qos", qos, "MaxTRES,MaxWall")[0]
    nodes_limit = re.search(r"\bnode=(\d+)", tres)
    return (int(nodes_limit[1]) if nodes_limit else None), minutes_of(wall)


def _records(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if fields:
            yield fields


def _number(word: str) -> int | None:
    return int(word) if word.isdigit() else None


def _partition(fields: dict[str, str]) -> Partition:
    return Partition(
        name=fields.get("PartitionName", ""),
        state=fields.get("State", "UP"),
        default=fields.get("Default") == "YES",
        max_nodes=_number(fields.get("MaxNodes", "")),
        max_minutes=minutes_of(fields.get("MaxTime", "")),
        grace_seconds=float(_number(fields.get("GraceTime", "")) or 0),
        preempt_mode=fields.get("PreemptMode", "OFF"),
        nodes=_number(fields.get("TotalNodes", "")) or 0,
        exclusive=fields.get("OverSubscribe") == "EXCLUSIVE",
        qos=fields.get("QoS", "").replace("N/A", ""),
        gpus_bring_cores="DefCpuPerGPU" in fields.get("JobDefaults", ""),
    )


def preempt_mode_of_qos(slurm: Slurm, qos: str) -> str:
    """Return the preemption mode of a QoS (requeue, cancel, ...); `cluster` if it has none of its own."""
    return accounting_rows(slurm, "qos", qos, "PreemptMode")[0][0]


def _node(columns: list[str]) -> Node:
    name, state, cpus, memory, gres = columns
    _, idle, _, total = cpus.split("/")[:4]
    mib = _number(memory.rstrip("+")) or 0
    return Node(name=name, state=state, cpus=int(total), idle_cpus=int(idle), memory_mib=mib, gpus=_gpus(gres))


def _reservation(fields: dict[str, str]) -> Reservation:
    return Reservation(
        name=fields["ReservationName"],
        start=seconds_of(fields.get("StartTime", "")),
        end=seconds_of(fields.get("EndTime", "")),
        maintenance="MAINT" in fields.get("Flags", "").split(","),
        nodes=_number(fields.get("NodeCnt", "")) or 0,
        partition=fields.get("PartitionName", "(null)"),
    )
