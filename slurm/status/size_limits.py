"""How large one job may be: what its partition, the partition's nodes and its QoS allow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ropewalk.cluster.text import counted
from ropewalk.slurm.cluster_info import Node, Partition, largest_job
from ropewalk.slurm.commands import Slurm

UNITS = {"nodes": "node", "most_nodes": "node", "time_limit_minutes": "minute", "cpus": "CPU", "gpus": "GPU"}


@dataclass(frozen=True, kw_only=True)
class SizeLimit:
    """Something larger than which no job may be, and who says so."""

    said: str  # partition short allows at most 2 nodes
    key: str  # nodes, most_nodes, time_limit_minutes, cpus, memory_gib, gpus
    most: float


def size_limits(partition: Partition, nodes: Sequence[Node]) -> list[SizeLimit]:
    """What a partition and its nodes allow."""
    who = f"partition {partition.name}"
    found = _allowed(who, {"most_nodes": partition.max_nodes, "time_limit_minutes": partition.max_minutes})
    if not nodes:
        return found
    found.append(SizeLimit(said=f"{who} has {counted(len(nodes), 'node')}", key="nodes", most=len(nodes)))
    largest = {
        "cpus": max(node.cpus for node in nodes),
        "gpus": max(node.gpus for node in nodes),
        "memory_gib": math.floor(max(node.memory_mib for node in nodes) / 102.4) / 10,
    }
    for key, most in largest.items():
        said = f"no node of {who} has {f'more than {_amount(key, most)}' if most else 'GPUs'}"
        found.append(SizeLimit(said=said, key=key, most=most))
    return found


def qos_limits(slurm: Slurm, qos: str) -> list[SizeLimit]:
    """What a QoS allows one job, by accounting. Raises BackendError where there is none."""
    nodes, minutes = largest_job(slurm, qos)
    return _allowed(f"QoS {qos}", {"most_nodes": nodes, "time_limit_minutes": minutes})


def _allowed(who: str, limits: Mapping[str, float | None]) -> list[SizeLimit]:
    return [
        SizeLimit(said=f"{who} allows at most {_amount(key, most)}", key=key, most=most)
        for key, most in limits.items()
        if most is not None
    ]


def _amount(key: str, most: float) -> str:
    return f"{most:g} GiB" if key == "memory_gib" else counted(most, UNITS[key])
