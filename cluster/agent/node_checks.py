"""Checks of one machine: clock, shared memory, ports, interfaces, file system, GPUs. `doctor` and agents use the same ones."""

import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ropewalk.cluster.process.ports import free_port, listen_on

MOST_SKEW_SECONDS = 2.0
LEAST_SHARED_BYTES = 256 << 20  # containers have 64 MiB by default, which data loaders and NCCL exceed
CONNECT_SECONDS = 5.0
GPUS = "GPUs"
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Finding(NamedTuple):
    """Result of one check."""

    check: str
    value: str
    remedy: str = ""  # empty: passed
    machine: bool = False  # the machine is the cause, not a setting, a program or what machines share


def local_checks(folder: Path, address: str, gpus: int) -> dict[str, Callable[[], Finding]]:
    """Return the checks of this machine by name, for runs in a folder; other machines reach it at `address`."""
    return {
        "clock": lambda: check_clock(folder),
        "shared memory": check_shared_memory,
        "ports": lambda: check_port(address),
        "interfaces": lambda: check_interfaces(address),
        "file system": lambda: check_files(folder),
        **({GPUS: lambda: check_gpus(gpus)} if gpus else {}),
    }


def check_clock(folder: Path, now: Callable[[], float] = time.time) -> Finding:
    """Compare the clock with that of the file server: both date a file that is written now."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as stream:
        before = now()
        stream.write(b"-")
        stream.flush()
        os.fsync(stream.fileno())
        after, written = now(), os.stat(stream.name).st_mtime
    return judge_clock(max(before - written, min(0.0, after - written)), "the clock of the file system")


def judge_clock(ahead_seconds: float, other: str) -> Finding:
    """Judge by how much this machine's clock is ahead of another."""
    value = f"{abs(ahead_seconds):.1f} s {'ahead of' if ahead_seconds > 0 else 'behind'} {other}"
    if abs(ahead_seconds) <= MOST_SKEW_SECONDS:
        return Finding("clock", value)
    return Finding("clock", value, "have the machine's time synchronized (chronyd, ntpd)", machine=True)


def check_shared_memory(
    folder: Path = Path("/dev/shm"),  # noqa: S108 - the folder that is checked
    usage: Callable[[Path], Any] = shutil.disk_usage,
) -> Finding:
    """Check that processes can share memory, and enough of it."""
    remedy = "remove what ended programs left there, or give the container more (--shm-size, an emptyDir of medium Memory)"
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = usage(folder).free
    except OSError as error:
        return Finding("shared memory", f"{folder}: {error.strerror or error}", remedy, machine=True)
    value = f"{free >> 20} MiB free in {folder}"
    return Finding("shared memory", value, remedy if free < LEAST_SHARED_BYTES else "", machine=free < LEAST_SHARED_BYTES)


def check_port(address: str, connect: Callable[..., socket.socket] = socket.create_connection) -> Finding:
    """Check that a port can be opened at the address under which others know this machine, and answers there."""
    try:
        port = free_port(address)
        with listen_on(address, port), connect((address, port), timeout=CONNECT_SECONDS):
            return Finding("ports", f"{address} accepts connections")
    except OSError as error:
        remedy = "let the name resolve to an address of this machine, and let firewalls pass TCP between the nodes"
        return Finding("ports", f"{address}: {error}", remedy)


def check_interfaces(
    address: str,
    environment: Mapping[str, str] = os.environ,
    interfaces: Callable[[], Mapping[str, Any]] = psutil.net_if_addrs,
) -> Finding:
    """Name the interface that each kind of socket takes, and check that it exists."""
    present, numeric = interfaces(), address
    with suppress(OSError):
        numeric = socket.gethostbyname(address)
    numeric = "127.0.0.1" if numeric.startswith("127.") else numeric  # all of 127.0.0.0/8 is the loopback interface's
    interface = next((name for name, addresses in present.items() if any(each.address == numeric for each in addresses)), "none")
    used = {"address": interface} | {
        variable: environment[variable] for variable in INTERFACE_VARIABLES if environment.get(variable)
    }
    value = ", ".join(f"{name}: {used_by}" for name, used_by in used.items())
    for variable in INTERFACE_VARIABLES:
        named = [name.lstrip("=") for name in environment.get(variable, "").split(",") if name]
        excluding = environment.get(variable, "").startswith("^")  # NCCL's names are prefixes
        if named and not excluding and not any(mine.startswith(name) for mine in present for name in named):
            return Finding("interfaces", value, f"unset {variable}, or name one of {', '.join(sorted(present))}")
    remedy = "" if interface != "none" else f"{address} is at no interface of this machine; correct its name in DNS or /etc/hosts"
    return Finding("interfaces", value, remedy)


def check_files(
    folder: Path, replace: Callable[[Path, Path], None] = os.replace, lock: Callable[[int, int], None] = fcntl.flock
) -> Finding:
    """Check that the runs' file system renames over a file and keeps a lock from a second holder."""
    remedy = "put the runs on a file system with rename and locks, such as NFS 4, Lustre or a disk"
    first, second = (folder / f".check-{secrets.token_hex(4)}" for _ in range(2))
    try:
        first.write_text("old")
        second.write_text("new")
        replace(second, first)
        if first.read_text() != "new" or second.exists():
            return Finding("file system", f"{folder}: a rename did not replace its target", remedy)
        with first.open("a") as holder, first.open("a") as other:
            lock(holder.fileno(), fcntl.LOCK_EX)
            with suppress(BlockingIOError):
                lock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Finding("file system", f"{folder}: two processes got the same lock", remedy)
    except OSError as error:
        return Finding("file system", f"{folder}: {error.strerror or error}", remedy)
    finally:
        for path in (first, second):
            path.unlink(missing_ok=True)
    return Finding("file system", f"{folder}: rename and locks work")


def check_gpus(gpus: int, count: Callable[[], int] | None = None, multiply: Callable[[int], bool] | None = None) -> Finding:
    """Check that each GPU of this node computes what it should."""
    present = (count or _count)()
    if present < gpus:
        value = f"{present} of {gpus} GPUs can be seen"
        return Finding(GPUS, value, "see nvidia-smi and the driver's messages there", machine=True)
    for device in range(gpus):
        try:
            error = "" if (multiply or _multiplies)(device) else "computed a wrong product"
        except RuntimeError as raised:
            error = str(raised).splitlines()[0]
        if error:
            return Finding(GPUS, f"GPU {device}: {error}", "see nvidia-smi -q and dmesg there, and have it reset", machine=True)
    return Finding(GPUS, f"{gpus} compute correctly")


def _count() -> int:
    import torch  # noqa: PLC0415 - slow to import

    return torch.cuda.device_count()


def _multiplies(device: int) -> bool:
    import torch  # noqa: PLC0415 - as above

    ones = torch.ones(2048, 2048, device=f"cuda:{device}")
    return bool(((ones @ ones) == 2048).all())
