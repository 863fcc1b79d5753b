"""Find and kill the processes of a directory, those that write a log, or a process and its descendants."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil


def processes_of(place: Path | str) -> list[psutil.Process]:
    """Find this user's processes whose command line or environment names `place` or a path below it, without this process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and _names(process, str(place)):
                found.append(process)
        except psutil.Error:  # it ended while we looked, or is another user's
            continue
    return found


def _names(process: psutil.Process, place: str) -> bool:
    named = re.compile(rf"{re.escape(place)}(?!\w)")  # not n10 for n1
    if any(named.search(word) for word in process.cmdline()):
        return True
    return any(value == place or value.startswith(f"{place}/") for value in process.environ().values())


def processes_with(variables: Mapping[str, str]) -> list[psutil.Process]:
    """Find this user's processes that were started with all these variables in their environment, without this process.

    What a program has started is found so whoever its parent is now. One that was forked has them in its title.
    """
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):  # psutil's own look costs ten times as much
        with suppress(OSError, psutil.Error):  # it ended while we looked, or is another user's
            if int(pid) != os.getpid() and (wanted <= _environment_of(pid) or wanted <= _title_of(pid)):
                found.append(psutil.Process(int(pid)))
    return found


def variable_of(process: psutil.Process, name: str) -> str | None:
    """A variable of the environment that a process was started with, or of the title of one that was forked; None: not there."""
    for word in {*_environment_of(process.pid), *_title_of(process.pid)}:
        if word.startswith(f"{name}=".encode()):
            return os.fsdecode(word.partition(b"=")[2])
    return None


def _environment_of(pid: int | str) -> set[bytes]:
    return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def _title_of(pid: int | str) -> set[bytes]:
    return set(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").split())


def writers_of(log: Path) -> list[psutil.Process]:
    """Find the processes whose output goes to a log file, the oldest first: the others are its children."""
    real, found = os.path.realpath(log), []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):  # it ended while we looked, or is another user's
            if os.readlink(f"/proc/{process.pid}/fd/1") == real:
                found.append(process)
    return sorted(found, key=lambda process: float(process.create_time()))


def end(processes: Iterable[psutil.Process], wait_seconds: float = 3.0) -> int:
    """Kill processes and wait until they are gone; returns how many there were."""
    doomed = list(processes)
    for process in doomed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(doomed, timeout=wait_seconds)
    return len(doomed)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants; empty if it is gone."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []
