"""Energy of a node from the counters of its devices, divided between a run and the rest of the machine."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from ropewalk.cluster.gpus import DEVICES_VARIABLE

POWERCAP = Path("/sys/class/powercap")  # RAPL of Intel and AMD; since 2020 only root may read it by default


class Gpu(NamedTuple):
    """A GPU of the machine and its energy counter."""

    name: str
    joules: float | None  # since the driver was loaded; None: it has no counter
    ours: bool
    divided: bool = False  # into parts (MIG) that other users may have


class Cpu(NamedTuple):
    """Energy counters of the processors, and seconds of their cores."""

    joules: Mapping[str, float]  # by package
    wraps_at: Mapping[str, float]  # the values at which the counters begin again
    ours: float  # core-seconds of this run
    busy: float  # of all processes
    total: float  # busy and idle


class MachinePower:
    """Counters of this machine: NVML, RAPL and the CPU times of this process and its descendants."""

    def gpus(self) -> list[Gpu]:
        """Return the GPUs that NVML shows here; none without a driver."""
        import pynvml  # noqa: PLC0415 - slow to import

        visible = [name.strip() for name in os.environ.get(DEVICES_VARIABLE, "all").split(",") if name.strip()]
        devices: list[Gpu] = []
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid, joules, divided = str(index), None, False
                with suppress(pynvml.NVMLError):
                    uuid = pynvml.nvmlDeviceGetUUID(handle)
                with suppress(pynvml.NVMLError):
                    joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
                with suppress(pynvml.NVMLError):
                    divided = bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
                ours = visible == ["all"] or str(index) in visible or uuid in visible or (divided and bool(visible))
                devices.append(Gpu(uuid, joules, ours, divided))
            pynvml.nvmlShutdown()
        return devices

    def cpu(self) -> Cpu | None:
        """Return the counters of all packages; None if one cannot be read."""
        packages = sorted(POWERCAP.glob("intel-rapl:[0-9]")) + sorted(POWERCAP.glob("intel-rapl:[0-9][0-9]"))
        try:
            joules = {path.name: int((path / "energy_uj").read_text()) / 1e6 for path in packages}
            wraps = {path.name: int((path / "max_energy_range_uj").read_text()) / 1e6 for path in packages}
        except (OSError, ValueError):
            return None
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # counted as user too
        idle = times.idle + getattr(times, "iowait", 0.0)
        return Cpu(joules, wraps, _tree_seconds(), total - idle, total) if joules else None


def _tree_seconds() -> float:
    """Return the CPU seconds of this process and its descendants, also of those that have ended and were waited for."""
    me, seconds = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


class EnergyAccount:
    """Cumulative energy since it was made, of the run and of the rest of the machine: together what the counters say.

    A GPU belongs to whoever it is allocated to, used or not. Of a processor, the part of the time in which its cores work is
    divided by CPU time, the idle part by the share of the cores that is allocated. What cannot be read has no key.
    """

    def __init__(self, power: MachinePower, cores: int | None) -> None:
        """`cores`: those that are allocated to the run; None: unknown, and so is the energy of the processors."""
        self._power, self._cores = power, cores
        self._gpus = {gpu.name: gpu for gpu in power.gpus()}
        self._cpu = power.cpu() if cores is not None else None
        self._joules = {"gpu": 0.0, "gpu_others": 0.0, "cpu": 0.0, "cpu_others": 0.0}
        mine = [gpu for gpu in self._gpus.values() if gpu.ours]
        self._known = {
            "gpu": bool(mine) and all(gpu.joules is not None and not gpu.divided for gpu in mine),
            "cpu": self._cpu is not None,
        }

    def sample(self) -> dict[str, float]:
        """Return the energy until now in joules: `energy_gpu_joules`, `energy_gpu_others_joules`, the same of `cpu`."""
        if self._known["gpu"]:
            self._add_gpus()
        if self._known["cpu"]:
            self._add_cpu()
        values = {kind: round(joules, 3) for kind, joules in self._joules.items() if self._known[kind.partition("_")[0]]}
        return {f"energy_{kind}_joules": joules for kind, joules in values.items()}

    def _add_gpus(self) -> None:
        now = {gpu.name: gpu for gpu in self._power.gpus()}
        for name, before in self._gpus.items():
            after = now.get(name)
            if before.joules is None or after is None or after.joules is None or after.joules < before.joules:
                if before.ours:  # it has failed, or its driver was loaded again: the rest of its energy is unknown
                    self._known["gpu"] = False
                continue
            self._joules["gpu" if before.ours else "gpu_others"] += after.joules - before.joules
        self._gpus |= {name: gpu._replace(ours=self._gpus[name].ours) for name, gpu in now.items() if name in self._gpus}

    def _add_cpu(self) -> None:
        before, after = self._cpu, self._power.cpu()
        if before is None or after is None or before.joules.keys() != after.joules.keys() or self._cores is None:
            self._known["cpu"] = False
            return
        joules = sum((after.joules[name] - before.joules[name]) % after.wraps_at[name] for name in after.joules)
        total, busy = after.total - before.total, max(0.0, after.busy - before.busy)
        if total <= 0:
            return
        mine = min(busy, max(0.0, after.ours - before.ours))
        share = min(1.0, self._cores / (os.cpu_count() or 1))
        ours = joules * (mine + (total - busy) * share) / total
        self._joules["cpu"] += ours
        self._joules["cpu_others"] += joules - ours
        self._cpu = after
