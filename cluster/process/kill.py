"""Search for processes by directory, environment or log file, and termination of process trees."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil


def processes_of(path: Path | str) -> list[psutil.Process]:
    """Find this user's other processes whose command line or environment contains `path` or a path below it."""
    matches = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and _mentions(process, str(path)):
                matches.append(process)
        except psutil.Error:  # it has just ended, or belongs to another user
            continue
    return matches


def _mentions(process: psutil.Process, path: str) -> bool:
    pattern = re.compile(rf"{re.escape(path)}(?!\w)")  # n1 must not match n10
    if any(pattern.search(argument) for argument in process.cmdline()):
        return True
    return any(value == path or value.startswith(f"{path}/") for value in process.environ().values())


def processes_with(variables: Mapping[str, str]) -> list[psutil.Process]:
    """Find this user's other processes with all these variables in their initial environment, also adopted descendants."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    matches = []
    for pid in filter(str.isdigit, os.listdir("/proc")):  # ten times as fast as psutil
        with suppress(OSError, psutil.Error):  # it has just ended, or belongs to another user
            if int(pid) != os.getpid() and wanted <= _environment_of(pid):
                matches.append(psutil.Process(int(pid)))
    return matches


def variable_of(process: psutil.Process, name: str) -> str | None:
    """Return a variable of a process's initial environment, or None if it is not set."""
    for word in _environment_of(process.pid):
        if word.startswith(f"{name}=".encode()):
            return os.fsdecode(word.partition(b"=")[2])
    return None


def _environment_of(pid: int | str) -> set[bytes]:
    return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def writers_of(log: Path) -> list[psutil.Process]:
    """Find the processes whose stdout goes to a log file, oldest first: the others are its descendants."""
    real, writers = os.path.realpath(log), []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):  # it has just ended, or belongs to another user
            if os.readlink(f"/proc/{process.pid}/fd/1") == real:
                writers.append(process)
    return sorted(writers, key=lambda process: float(process.create_time()))


def end(processes: Iterable[psutil.Process], wait_seconds: float = 3.0) -> int:
    """Kill processes, wait until they are gone, and return their number."""
    victims = list(processes)
    for process in victims:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(victims, timeout=wait_seconds)
    return len(victims)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants; an empty list if the process is gone."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []
