"""Periodic samples of a node's resources (psutil, NVML); their file also shows that the node is alive."""

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ropewalk.cluster.agent.energy import EnergyAccount
from ropewalk.cluster.process.log_rotation import rotate, rotate_logs
from ropewalk.cluster.run.files import append_line
from ropewalk.cluster.run.heartbeat import time_sample

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
DENSE_SECONDS = 86400.0  # with a sample at each interval
SPARSE_SECONDS = 60.0  # between samples after that
ROTATION_SECONDS = 60.0  # between two looks at the sizes of logs
_GIB = 2**30


def sample(node: int) -> dict[str, Any]:
    """Sample the node's CPU, memory, network and GPUs; units are in the keys."""
    memory = psutil.virtual_memory()
    network = psutil.net_io_counters()
    values: dict[str, Any] = {
        "time": time.time(),
        "node": node,
        "cpu_percent": psutil.cpu_percent(),
        "load": psutil.getloadavg()[0],
        "memory_used_gib": round((memory.total - memory.available) / _GIB, 3),
        "memory_percent": memory.percent,
        "process_memory_gib": round(_tree_memory() / _GIB, 3),
        "network_sent_gib": round(network.bytes_sent / _GIB, 3) if network else 0.0,
        "network_received_gib": round(network.bytes_recv / _GIB, 3) if network else 0.0,
    }
    return {**values, **_gpus()}


def _tree_memory() -> int:
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # the process has just ended
            continue
    return total


def _gpus() -> dict[str, float]:
    import pynvml  # noqa: PLC0415 - slow to import

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    values: dict[str, float] = {}
    with suppress(pynvml.NVMLError):  # a GPU has failed
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            with suppress(pynvml.NVMLError):  # not available under MIG
                values[f"gpu{index}_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            with suppress(pynvml.NVMLError):
                values[f"gpu{index}_memory_gib"] = round(pynvml.nvmlDeviceGetMemoryInfo(handle).used / _GIB, 3)
    with suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()
    return values


class Monitor:
    """Thread that appends samples to a file, and keeps the logs of this machine's processes small.

    A node whose file is no longer written or touched is dead or disconnected. After a day samples are a minute apart.
    """

    def __init__(
        self,
        path: Path,
        node: int,
        logs: Path,
        *,
        heart: Path | None = None,
        energy: Callable[[], EnergyAccount] | None = None,
        after: Callable[[], None] = lambda: None,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        """Create the thread. `heart`: file of the heartbeats of the node's first rank.

        In the thread, `energy` makes the account of energy for the samples, and `after` is called after each look.
        """
        self._path, self._node, self._logs, self._heart = path, node, logs, heart
        self._make_account = energy
        self._account: EnergyAccount | None = None
        self._after, self._interval_seconds = after, interval_seconds
        self._started = self._sampled = self._rotated = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample, and end the thread."""
        self._ended.set()
        self._thread.join(timeout=self._interval_seconds)

    def _run(self) -> None:
        while True:
            try:
                self._look()
                self._after()
            except (OSError, psutil.Error) as error:
                log.warning("a sample of the node could not be written, or a log not rotated: %s", error)
            if self._ended.wait(self._interval_seconds):
                return

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._started < DENSE_SECONDS or now - self._sampled >= SPARSE_SECONDS or self._ended.is_set():
            if self._account is None and self._make_account is not None:
                self._account = self._make_account()
            energy = self._account.sample() if self._account is not None else {}
            append_line(self._path, {**sample(self._node), **energy, **time_sample(self._heart)})
            self._sampled = now
        else:
            os.utime(self._path)
        if now - self._rotated >= ROTATION_SECONDS:
            self._rotated = now
            rotate(self._path)
            rotate_logs(self._logs)
