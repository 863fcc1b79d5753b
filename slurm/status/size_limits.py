"""Upper limits on the size of a job: those of its partition, of the partition's nodes, and of its QoS."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ropewalk.cluster.text import counted
from ropewalk.slurm.cluster_info import Node, Partition, largest_job
from ropewalk.slurm.commands import Slurm

UNITS = {"nodes": "node", "most_nodes": "node", "time_limit_minutes": "minute", "cpus": "CPU", "gpus": "GPU"}


@dataclass(frozen=True, kw_only=True)
class SizeLimit:
    """An upper limit on one key of a job's resources."""

    message: str  # partition short allows at most 2 nodes
    key: str  # nodes, most_nodes, time_limit_minutes, cpus, memory_gib, gpus
    most: float


def size_limits(partition: Partition, nodes: Sequence[Node]) -> list[SizeLimit]:
    """Return the limits of a partition and its nodes."""
    who = f"partition {partition.name}"
    limits = _limits(who, {"most_nodes": partition.max_nodes, "time_limit_minutes": partition.max_minutes})
    if not nodes:
        return limits
    limits.append(SizeLimit(message=f"{who} has {counted(len(nodes), 'node')}", key="nodes", most=len(nodes)))
    largest = {
        "cpus": max(node.cpus for node in nodes),
        "gpus": max(node.gpus for node in nodes),
        "memory_gib": math.floor(max(node.memory_mib for node in nodes) / 102.4) / 10,
    }
    for key, most in largest.items():
        message = f"no node of {who} has {f'more than {_amount(key, most)}' if most else 'GPUs'}"
        limits.append(SizeLimit(message=message, key=key, most=most))
    return limits


def qos_limits(slurm: Slurm, qos: str) -> list[SizeLimit]:
    """Return the limits of a QoS on a single job. Raises BackendError without accounting."""
    nodes, minutes = largest_job(slurm, qos)
    return _limits(f"QoS {qos}", {"most_nodes": nodes, "time_limit_minutes": minutes})


def _limits(who: str, values: Mapping[str, float | None]) -> list[SizeLimit]:
    return [
        SizeLimit(message=f"{who} allows at most {_amount(key, most)}", key=key, most=most)
        for key, most in values.items()
        if most is not None
    ]


def _amount(key: str, most: float) -> str:
    return f"{most:g} GiB" if key == "memory_gib" else counted(most, UNITS[key])
