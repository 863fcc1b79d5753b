"""The GPUs of this machine, and how a node is told which of them are its own. Nothing in here touches CUDA.

A backend tells each agent in NODE_GPUS_VARIABLE how many GPUs its node was given. Which ones these are, CUDA_VISIBLE_DEVICES
says: the schedulers of Slurm and Kubernetes show a job no others, and the local backend deals those of its machine.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
MACHINE_DEVICES_VARIABLE = "ROPEWALK_MACHINE_DEVICES"  # the user's CUDA_VISIBLE_DEVICES, in the environment of a virtual node
NODE_GPUS_VARIABLE = "ROPEWALK_NODE_GPUS"
ALL = "all"  # MACHINE_DEVICES_VARIABLE where the user has set none
_UUIDS = ("GPU-", "MIG-")


def node_gpus() -> int | None:
    """Return how many GPUs this node was given; None if no agent said so, as below torchrun."""
    value = os.environ.get(NODE_GPUS_VARIABLE)
    return int(value) if value else None


def share_environment(gpus: int | None) -> dict[str, str]:
    """Return the variables of a process that has this share of its node's GPUs: it sees none where that is 0. Unset: all.

    Which ones they are, whoever deals them out (Ray, to an actor that reserves some) has said in CUDA_VISIBLE_DEVICES.
    """
    if gpus is None:
        return {}
    return {NODE_GPUS_VARIABLE: str(gpus), **({} if gpus else {DEVICES_VARIABLE: ""})}


def users_devices(environment: Mapping[str, str] = os.environ) -> str:
    """Return the CUDA_VISIBLE_DEVICES that the user set, also inside a virtual node, which changes it; ALL if it is unset."""
    return environment.get(MACHINE_DEVICES_VARIABLE) or environment.get(DEVICES_VARIABLE, ALL)


def device_order(environment: Mapping[str, str] = os.environ) -> str:
    """Return what CUDA_DEVICE_ORDER must be where devices are named by index: NVML's order, unless the user has set another.

    CUDA's own is the fastest first, so that on a machine of different GPUs an index would mean another one than NVML's.
    """
    return environment.get(ORDER_VARIABLE) or "PCI_BUS_ID"


def machine_devices(environment: Mapping[str, str] = os.environ) -> list[str]:
    """List the GPUs of this machine that the user may use, as CUDA names them (indices or UUIDs), by NVML and the environment.

    Like CUDA it ignores all names from the first invalid one on. Without NVML, as on AMD's GPUs, the environment is believed.
    """
    named, count = users_devices(environment), _count()
    if named == ALL:
        return [str(index) for index in range(count or 0)]
    devices: list[str] = []
    for name in (word.strip() for word in named.split(",")):
        is_index = name.isdecimal() and (count is None or int(name) < count)
        if not is_index and not name.startswith(_UUIDS):
            break
        devices.append(name)
    return devices if len(set(devices)) == len(devices) else []  # CUDA shows none if one is named twice


def _count() -> int | None:
    """Count the GPUs by NVML; None without a driver that has it."""
    import pynvml  # noqa: PLC0415 - only what asks for GPUs pays for the import

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def processes_on(devices: Sequence[str]) -> set[str]:
    """Those of the devices, named by index, on which processes compute, whoever's; empty where NVML does not tell."""
    import pynvml  # noqa: PLC0415 - only what asks for GPUs pays for the import

    found = set()
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for name in filter(str.isdecimal, devices):
                if pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(int(name))):
                    found.add(name)
        finally:
            pynvml.nvmlShutdown()
    return found


def deal_devices(resources: Resources, devices: Sequence[str] | None = None) -> list[list[str]]:
    """Deal GPUs (unset: this machine's) to its virtual nodes. Raises ConfigError if there are too few."""
    nodes, gpus = resources.nodes.most, resources.gpus
    if not gpus:
        return [[] for _ in range(nodes)]
    devices = machine_devices() if devices is None else devices
    if nodes * gpus > len(devices):
        where = "" if users_devices() == ALL else f" ({DEVICES_VARIABLE}={users_devices()})"
        raise ConfigError(
            f"resources: {nodes} virtual nodes with gpus={gpus} take {nodes * gpus} GPUs, and this machine has {len(devices)}"
            f"{where}; set {_what_fits(len(devices), nodes, gpus)}"
        )
    return [list(devices[node * gpus : (node + 1) * gpus]) for node in range(nodes)]


def _what_fits(count: int, nodes: int, gpus: int) -> str:
    remedies = [f"resources.gpus={count // nodes}"] if count >= nodes else []
    remedies += [f"resources.nodes={count // gpus}"] if count >= gpus else []
    return " or ".join(remedies) or "resources.gpus=0 to compute on its CPU, or use a cluster (--on)"
