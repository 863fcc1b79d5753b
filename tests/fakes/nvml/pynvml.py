"""NVML of a machine with $FAKE_GPUS GPUs; put this folder in front of PYTHONPATH for child processes."""

import os
from types import SimpleNamespace


class NVMLError(Exception):
    """Without the variable there is no driver."""


def nvmlInit() -> None:  # noqa: N802 - NVML's names
    if "FAKE_GPUS" not in os.environ:
        raise NVMLError("no driver")


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return int(os.environ["FAKE_GPUS"])


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:  # noqa: N802
    if uuid.startswith("MIG-"):
        raise NVMLError("not supported")
    return 0


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[int]:  # noqa: N802
    return [1] if str(handle) in os.environ.get("FAKE_GPUS_IN_USE", "").split(",") else []


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(gpu=50)


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(used=2**30)
