"""What a Slurm cluster has and allows: partitions, nodes, reservations, limits; read from its commands' plain text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from slurm.commands import Slurm
from slurm.job import seconds_of

SECONDS = 5.0  # an answer that takes longer is not waited for
UNLIMITED = {"UNLIMITED", "INFINITE", "NONE", "N/A", "(null)", ""}
FREE = ("idle", "plnd")
USABLE = ("idle", "plnd", "mix", "alloc", "comp", "resv", "power", "pow")
_LIMIT = re.compile(r"([\w/]+)=(\d+)\((\d+)\)")  # a limit that is set, and what is in use of it: MaxJobsPU=1(1), node=4(3)


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
        """Nobody's, and answering."""
        return self.state.startswith(FREE) and not self.state.endswith("*")

    @property
    def usable(self) -> bool:
        """At work, or able to: neither drained nor down."""
        return self.state.startswith(USABLE) and not self.state.endswith("*")


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Nodes kept for others, or for nobody."""

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
    unit: str  # jobs, node, cpu
    most: int
    used: int


def partitions(slurm: Slurm) -> list[Partition]:
    """All partitions."""
    return [_partition(fields) for fields in _records(slurm.ask("scontrol", "--oneliner", "show", "partition", seconds=SECONDS))]


def nodes(slurm: Slurm, partition: str) -> list[Node]:
    """The nodes of a partition."""
    text = slurm.ask(
        "sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%t|%C|%m|%G", seconds=SECONDS
    )  # %C: allocated/idle/other/total CPUs
    return [_node(line.split("|")) for line in text.splitlines() if line.count("|") == 4 and line.count("/") >= 3]


def reservations(slurm: Slurm) -> list[Reservation]:
    """All reservations, now and to come."""
    text = slurm.ask("scontrol", "--oneliner", "show", "reservation", seconds=SECONDS)
    return [_reservation(fields) for fields in _records(text) if "ReservationName" in fields]


def settings(slurm: Slurm) -> dict[str, str]:
    """`scontrol show config`."""
    lines = slurm.ask("scontrol", "show", "config", seconds=SECONDS).splitlines()
    return {key.strip(): value.strip() for key, separator, value in (line.partition("=") for line in lines) if separator}


def limits(slurm: Slurm, user: str, account: str | None, qos: str | None) -> list[Limit]:
    """The limits of QoS and associations that concern a user, as the controller counts them."""
    words = [f"users={user}", "flags=qos,assoc", f"qos={qos or 'normal'}", *([f"accounts={account}"] if account else [])]
    text = slurm.ask("scontrol", "show", "assoc_mgr", *words, seconds=SECONDS)
    found, owner = [], ""
    for line in text.splitlines():
        head = line.split()[:3]
        if head and head[0].startswith("QOS="):
            owner = f"QoS {head[0].removeprefix('QOS=').partition('(')[0]}"
        elif head and head[0].startswith("ClusterName="):
            owner = head[1].replace("Account=", "account ")
        name = line.split("=")[0].strip()
        for unit, most, used in _LIMIT.findall(line):
            plain = unit if name.endswith(("TRES", "TRESPU", "TRESPA")) else ""
            if plain in {"node", "cpu"} or unit in {"GrpJobs", "MaxJobs", "MaxJobsPU", "MaxJobsPA"}:
                limit = Limit(owner=owner, name=unit if not plain else name, unit=plain or "job", most=int(most), used=int(used))
                found.append(limit)
    return found


def largest_job(slurm: Slurm, qos: str) -> tuple[int | None, float | None]:
    """(nodes, minutes) that a QoS allows one job, by accounting."""
    words = ["--noheader", "--parsable2", "show", "qos", qos, "format=MaxTRES,MaxWall"]
    tres, _, wall = slurm.ask("sacctmgr", *words, seconds=SECONDS).strip().partition("|")
    found = re.search(r"\bnode=(\d+)", tres)
    return (int(found[1]) if found else None), minutes_of(wall)


def minutes_of(words: str) -> float | None:
    """Slurm's duration, such as 1-00:00:00, 00:10:00 or 30, in minutes; None: no limit."""
    if words in UNLIMITED or not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", words):
        return None
    days, dash, rest = words.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


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
    )


def _node(words: list[str]) -> Node:
    name, state, cpus, memory, gres = words
    _, idle, _, total = cpus.split("/")[:4]
    gpus = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", gres))
    mib = _number(memory.rstrip("+")) or 0
    return Node(name=name, state=state, cpus=int(total), idle_cpus=int(idle), memory_mib=mib, gpus=gpus)


def _reservation(fields: dict[str, str]) -> Reservation:
    return Reservation(
        name=fields["ReservationName"],
        start=seconds_of(fields.get("StartTime", "")),
        end=seconds_of(fields.get("EndTime", "")),
        maintenance="MAINT" in fields.get("Flags", "").split(","),
        nodes=_number(fields.get("NodeCnt", "")) or 0,
        partition=fields.get("PartitionName", "(null)"),
    )
