"""What a Slurm cluster has and allows: partitions, nodes, reservations, limits; read from its commands' plain text."""

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
    """One line of `scontrol show partition`."""

    name: str
    state: str
    default: bool
    max_nodes: int | None
    max_minutes: float | None
    grace_seconds: float
    preempt_mode: str
    nodes: int
    exclusive: bool = False  # jobs get whole nodes
    gpus_bring_cores: bool = False  # each GPU of a job comes with a number of cores (DefCpuPerGPU)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a partition."""

    name: str
    state: str  # sinfo's short word
    cpus: int
    idle_cpus: int
    memory_mib: int
    gpus: int

    @property
    def free(self) -> bool:
        """Whether the node has no job, and answers."""
        return self.state.startswith(FREE) and not self.state.endswith("*")

    @property
    def usable(self) -> bool:
        """Whether the node works or could: it is neither drained nor down."""
        return self.state.startswith(USABLE) and not self.state.endswith("*")


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """One line of `scontrol show reservation`: nodes that are kept for somebody, or for nobody."""

    name: str
    start: float  # seconds since the epoch
    end: float
    maintenance: bool
    nodes: int
    partition: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of a QoS or an association that is set, and what is in use of it."""

    owner: str  # QoS small, account lab
    name: str  # MaxJobsPU, GrpTRES
    unit: str  # job, node, cpu, gres/gpu
    most: int
    used: int


def partitions(slurm: Slurm) -> list[Partition]:
    """All partitions of the cluster."""
    return [
        _partition(fields)
        for fields in _records(slurm.ask("scontrol", "--oneliner", "show", "partition", seconds=QUESTION_SECONDS))
    ]


def used_partitions(slurm: Slurm, wanted: str | None) -> list[Partition]:
    """The partitions that a job may go to: those that are `wanted`, one or several (a,b), else the default one."""
    names = wanted.split(",") if wanted else None
    return [one for one in partitions(slurm) if (one.default if names is None else one.name in names)]


def nodes(slurm: Slurm, partition: str) -> list[Node]:
    """The nodes of a partition."""
    text = slurm.ask(
        "sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%t|%C|%m|%G", seconds=QUESTION_SECONDS
    )  # %C: allocated/idle/other/total CPUs
    return [_node(line.split("|")) for line in text.splitlines() if line.count("|") == 4 and line.count("/") >= 3]


def reservations(slurm: Slurm) -> list[Reservation]:
    """All reservations of the cluster, present and future."""
    text = slurm.ask("scontrol", "--oneliner", "show", "reservation", seconds=QUESTION_SECONDS)
    return [_reservation(fields) for fields in _records(text) if "ReservationName" in fields]


def settings(slurm: Slurm) -> dict[str, str]:
    """The cluster's settings, by `scontrol show config`."""
    lines = slurm.ask("scontrol", "show", "config", seconds=QUESTION_SECONDS).splitlines()
    return {key.strip(): value.strip() for key, separator, value in (line.partition("=") for line in lines) if separator}


def limits(slurm: Slurm, user: str, account: str | None, qos: str | None) -> list[Limit]:
    """The limits of a user's association and QoS that are set, and what the user's jobs use of them now.

    Never by `scontrol show assoc_mgr`, though it counts better: without accounting it kills the controller (24.11).
    """
    if not account:
        account = _rows(slurm, "user", user, "DefaultAccount")[0][0]
    rows = _rows(slurm, "assoc", f"user={user}", f"account={account}", "DefaultQOS,MaxJobs,GrpJobs,GrpTRES")
    name = qos or rows[0][0] or "normal"
    answer = slurm.ask(
        "squeue", "--noheader", f"--user={user}", "--states=RUNNING", f"--format={USAGE_FORMAT}", seconds=QUESTION_SECONDS
    )
    mine = [line.split("|") for line in answer.splitlines() if line.count("|") == 4]
    found: list[Limit] = []
    for _, *values in rows:
        used = _used([job for job in mine if job[1] == account])
        found += _limits(f"account {account}", ("MaxJobs", "GrpJobs", "GrpTRES"), values, used)
    for values in _rows(slurm, "qos", name, "MaxJobsPU,MaxTRESPU"):
        used = _used([job for job in mine if job[0] == name])
        found += _limits(f"QoS {name}", ("MaxJobsPU", "MaxTRESPU"), values, used)
    return found


def _rows(slurm: Slurm, what: str, *words: str) -> list[list[str]]:
    """What accounting shows, the last word being the columns. Raises BackendError, also if there is nothing."""
    *which, columns = words
    text = slurm.ask("sacctmgr", "--noheader", "--parsable2", "show", what, *which, f"format={columns}", seconds=QUESTION_SECONDS)
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == columns.count(",")]
    if not rows:
        raise BackendError(f"accounting knows no {what} {' '.join(which)}")
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
    """How many (nodes, minutes) a QoS allows one job, by accounting; None: no limit."""
    tres, wall = _rows(slurm, "qos", qos, "MaxTRES,MaxWall")[0]
    found = re.search(r"\bnode=(\d+)", tres)
    return (int(found[1]) if found else None), minutes_of(wall)


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
        gpus_bring_cores="DefCpuPerGPU" in fields.get("JobDefaults", ""),
    )


def preempt_mode_of_qos(slurm: Slurm, qos: str) -> str:
    """What Slurm does to a job of a QoS that it preempts, by accounting: requeue, cancel, ...; `cluster` where it has none."""
    return _rows(slurm, "qos", qos, "PreemptMode")[0][0]


def _node(words: list[str]) -> Node:
    name, state, cpus, memory, gres = words
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
