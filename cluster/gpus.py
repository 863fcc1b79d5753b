"""Detection of this machine's GPUs, and their assignment to nodes. Nothing in this module initializes CUDA.

Each backend passes the number of a node's GPUs to its agent in NODE_GPUS_VARIABLE. The devices themselves are listed in
CUDA_VISIBLE_DEVICES: Slurm and Kubernetes expose only the allocated ones, and the local backend assigns those of its machine.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.text import counted

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
MACHINE_DEVICES_VARIABLE = "ROPEWALK_MACHINE_DEVICES"  # the user's CUDA_VISIBLE_DEVICES, in the environment of a virtual node
NODE_GPUS_VARIABLE = "ROPEWALK_NODE_GPUS"
ALL = "all"  # MACHINE_DEVICES_VARIABLE where the user has set none
IDLE_PERCENT = 5.0  # a GPU that is used less counts as idle
_UUIDS = ("GPU-", "MIG-")


def gpu_percents(sample: Mapping[str, Any]) -> list[float]:
    """Return the use of each GPU in a node's sample."""
    return [value for key, value in sample.items() if key.startswith("gpu") and key.endswith("_percent")]


def node_gpus() -> int | None:
    """Return the number of this node's GPUs, or None if no agent set it, as under torchrun."""
    value = os.environ.get(NODE_GPUS_VARIABLE)
    return int(value) if value else None


def share_environment(gpus: int | None) -> dict[str, str]:
    """Return the environment of a process that uses `gpus` of its node's GPUs; None: all of them.

    With 0 all GPUs are hidden. Otherwise CUDA_VISIBLE_DEVICES is left as the scheduler (such as Ray, for an actor) has set it.
    """
    if gpus is None:
        return {}
    return {NODE_GPUS_VARIABLE: str(gpus), **({} if gpus else {DEVICES_VARIABLE: ""})}


def users_devices(environment: Mapping[str, str] = os.environ) -> str:
    """Return the CUDA_VISIBLE_DEVICES that the user set, or ALL; inside a virtual node, the value from before the node."""
    return environment.get(MACHINE_DEVICES_VARIABLE) or environment.get(DEVICES_VARIABLE, ALL)


def device_order(environment: Mapping[str, str] = os.environ) -> str:
    """Return the CUDA_DEVICE_ORDER for devices named by index: the user's value, else NVML's order.

    CUDA's default order is fastest first, so on a machine with different GPUs its indices differ from NVML's.
    """
    return environment.get(ORDER_VARIABLE) or "PCI_BUS_ID"


def machine_devices(environment: Mapping[str, str] = os.environ) -> list[str]:
    """List the GPUs of this machine that the user may use, as CUDA names them (indices or UUIDs), from NVML and environment.

    As in CUDA, the first invalid name and all names after it are ignored. Without NVML (AMD GPUs) the environment is trusted.
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
    return devices if len(set(devices)) == len(devices) else []  # CUDA shows no device if a name is repeated


def _count() -> int | None:
    """Return the number of GPUs from NVML, or None if there is no NVIDIA driver."""
    import pynvml  # noqa: PLC0415 - slow to import, and only jobs with GPUs need it

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def processes_on(devices: Sequence[str]) -> set[str]:
    """Return the devices on which a process of any user computes; without those of which NVML cannot tell it."""
    import pynvml  # noqa: PLC0415 - slow to import, and only jobs with GPUs need it

    busy = set()
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for name in devices:
                with suppress(pynvml.NVMLError):
                    if pynvml.nvmlDeviceGetComputeRunningProcesses(_handle(name)):
                        busy.add(name)
        finally:
            pynvml.nvmlShutdown()
    return busy


def torch_without_cuda() -> str:
    """Return the version of the installed torch if it is a build for CPUs only, else an empty string. Does not import torch."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
    return version if version.endswith("+cpu") else ""


def _handle(device: str) -> Any:
    """Return NVML's handle of a GPU given by index or UUID. Raises NVMLError."""
    import pynvml  # noqa: PLC0415 - slow to import, and only jobs with GPUs need it

    if device.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device))
    return pynvml.nvmlDeviceGetHandleByUUID(device)


def gpu_percent(device: str) -> float | None:
    """Return the use of a GPU (an index or UUID) in the last second, or None if NVML cannot tell, as under MIG."""
    import pynvml  # noqa: PLC0415 - slow to import, and only jobs with GPUs need it

    try:
        pynvml.nvmlInit()
        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(_handle(device)).gpu)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def rank_gpu(local_rank: int, ranks: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the GPU of a rank of this node as CUDA_VISIBLE_DEVICES names it, or None if the node was allocated none."""
    gpus = int(environment.get(NODE_GPUS_VARIABLE) or 0)
    if not gpus:
        return None
    number = local_rank * (gpus // ranks)
    devices = [name.strip() for name in environment.get(DEVICES_VARIABLE, "").split(",") if name.strip()]
    return devices[number] if number < len(devices) else str(number)


def deal_devices(resources: Resources, devices: Sequence[str] | None = None) -> list[list[str]]:
    """Assign GPUs (default: this machine's) to its virtual nodes. Raises ConfigError if there are too few."""
    nodes, gpus = resources.allocated_nodes.most, resources.gpus
    if not gpus:
        return [[] for _ in range(nodes)]
    devices = machine_devices() if devices is None else devices
    if nodes * gpus > len(devices):
        where = "" if users_devices() == ALL else f" ({DEVICES_VARIABLE}={users_devices()})"
        raise ConfigError(
            f"resources: gpus={gpus} on {counted(nodes, 'virtual node')} are {counted(nodes * gpus, 'GPU')}, but this machine has"
            f" {len(devices)}"
            f"{where}; set {_remedies(len(devices), nodes, gpus)}"
        )
    return [list(devices[node * gpus : (node + 1) * gpus]) for node in range(nodes)]


def _remedies(count: int, nodes: int, gpus: int) -> str:
    remedies = [f"resources.gpus={count // nodes}"] if count >= nodes else []
    remedies += [f"resources.nodes={count // gpus}"] if count >= gpus else []
    return " or ".join(remedies) or "resources.gpus=0 to compute on the CPU, or use a cluster (--on)"
