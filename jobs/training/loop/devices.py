"""A table of GPUs: speed, memory and links, from NVIDIA's data sheets."""

import re
from typing import NamedTuple

USABLE = 0.92  # of a GPU's memory; the rest: context, NCCL's buffers, fragments of the allocator


class Device(NamedTuple):
    """One GPU. Rates without sparsity; links in one direction, of one GPU."""

    flops: float  # dense bf16 (V100: fp16), FLOP/s
    memory_gb: float
    within_node: float  # NVLink, else PCIe, bytes/s
    between_nodes: float  # the network card of a GPU in NVIDIA's own systems (DGX), else 100 Gbit/s; bytes/s
    float8: bool = True


# by part of the name, the more specific before the others
DEVICES = {
    "GB200": Device(2500e12, 186, 900e9, 50e9),
    "GH200": Device(989e12, 96, 450e9, 50e9),
    "H200": Device(989e12, 141, 450e9, 50e9),
    "H100 PCIe": Device(756e12, 80, 64e9, 25e9),
    "H100 NVL": Device(835e12, 94, 300e9, 25e9),
    "H100": Device(989e12, 80, 450e9, 50e9),
    "B200": Device(2250e12, 180, 900e9, 50e9),
    "A100": Device(312e12, 80, 300e9, 25e9, float8=False),
    "A800": Device(312e12, 80, 200e9, 25e9, float8=False),
    "L40S": Device(362e12, 48, 32e9, 12.5e9),
    "L40": Device(181e12, 48, 32e9, 12.5e9),
    "L4": Device(121e12, 24, 32e9, 12.5e9),
    "A10": Device(125e12, 24, 32e9, 12.5e9, float8=False),
    "V100": Device(125e12, 32, 150e9, 12.5e9, float8=False),
}


def device_named(name: str) -> Device | None:
    """Return the device whose name is part of this one, such as `NVIDIA L4`; None: unknown, or a part of a GPU (MIG)."""
    if "MIG" in name:
        return None
    return next((device for model, device in DEVICES.items() if re.search(rf"\b{model}\b", name)), None)
