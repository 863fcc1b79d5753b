"""One array task: runs its share of a pass and writes each result to a file, so that a kill loses at most one result."""

import os
import pickle
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ropewalk.cluster.errors import EXIT_LOST_PEER, RopewalkError
from ropewalk.cluster.process.signals import SignalFlag
from ropewalk.cluster.run.files import write_atomically
from ropewalk.datapipe.passes.task import SINGLE_THREADED, Task

LEASE = "lease.json"
LEASE_SECONDS = 120.0  # a driver that has not touched its lease for so long is dead
LEASE_CHECK_SECONDS = 10.0
PARENT_CHECK_SECONDS = 0.3
ENDING = ".result"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Work of one array task: numbered tasks, and the folder for their results, NUMBER.result."""

    output_url: str
    work_url: str
    tasks: tuple[tuple[int, Task], ...]
    folder: Path
    lease: Path
    driver: tuple[int, float] | None  # its pid and start time, if it is on this machine


def result_name(number: int) -> str:
    """Return the file name of one task's result."""
    return f"{number:06d}{ENDING}"


def do_share(share: Share) -> RopewalkError | None:
    """Run the tasks one after another; on SIGUSR2 (time limit near, or preemption) leave after the current one.

    Each result is committed before it is reported, so that SIGTERM and the death of the driver may end the process at once.
    Returns the error of the task that failed, if any.
    """
    leave = SignalFlag()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit would ignore SIGTERM, and requeue on SIGUSR2
    signal.signal(signal.SIGUSR2, lambda *_: leave.set())
    _leave_with_driver(share)
    os.environ.update(SINGLE_THREADED)
    import pyarrow as pa  # noqa: PLC0415 - a second of imports that the driver, which has this module too, does not need

    from ropewalk.datapipe.passes.worker import Worker  # noqa: PLC0415

    pa.set_cpu_count(1)
    worker = Worker(share.output_url, share.work_url)
    for number, task in share.tasks:
        if leave.is_set():
            break
        try:
            result = worker.do(task)
        except RopewalkError as error:
            return error
        write_atomically(share.folder / result_name(number), pickle.dumps(result))
    return None


def _leave_with_driver(share: Share) -> None:
    """End this process when its parent (submitit) or the driver is gone, since nothing would use its results."""
    parent = os.getppid()
    if not lease_holds(share.lease) or not _alive(share.driver):
        os._exit(EXIT_LOST_PEER)

    def watch() -> None:
        checked = time.monotonic()
        while os.getppid() == parent and _alive(share.driver):
            if time.monotonic() - checked > LEASE_CHECK_SECONDS:
                if not lease_holds(share.lease):
                    break
                checked = time.monotonic()
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(EXIT_LOST_PEER)

    threading.Thread(target=watch, name="driver-watch", daemon=True).start()


def lease_holds(lease: Path) -> bool:
    """Return True if the driver touched its lease recently, by the clock of the shared file system."""
    try:
        with (
            tempfile.TemporaryFile(dir=lease.parent) as now,
            lease.open("rb") as stream,
        ):  # opening a file refreshes its attributes
            now.write(b".")
            now.flush()
            return os.fstat(now.fileno()).st_mtime - os.fstat(stream.fileno()).st_mtime < LEASE_SECONDS
    except FileNotFoundError:
        return False


def _alive(driver: tuple[int, float] | None) -> bool:
    if driver is None:
        return True
    try:
        process = psutil.Process(driver[0])
        return abs(process.create_time() - driver[1]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
