"""Finds and kills the processes of a test cluster, including those that have detached themselves."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil

MARK = "ROPEWALK_SLURM_LAB"  # environment variable of every daemon: the lab's folder and the daemon's name, such as /tmp/lab:n1


def lab_processes(folder: Path, name: str = "") -> list[psutil.Process]:
    """Return a lab's daemons, or the one called `name`: a node's name, slurmctld, slurmdbd, mariadbd or munged."""
    marks = ((process, environment.get(MARK, "")) for process, environment in _living())
    return [process for process, mark in marks if (mark == f"{folder}:{name}" if name else mark.startswith(f"{folder}:"))]


def on_nodes(folder: Path, names: Sequence[str]) -> list[psutil.Process]:
    """Return all processes of some nodes: slurmd, its steps, and their descendants."""
    conf = str(folder / "etc/slurm.conf")
    marks, spools = {f"{folder}:{name}" for name in names}, [f"{folder}/spool/{name}/" for name in names]
    living = list(_living())
    roots = {p for p, e in living if e.get(MARK) in marks}
    # an orphaned task still has its node's name; SLURM_CONF distinguishes labs with equal names
    roots |= {p for p, e in living if e.get("SLURMD_NODENAME") in names and e.get("SLURM_CONF", conf) == conf}
    # slurmstepd overwrites its environment with its title, but listens on a socket in the spool folder of its slurmd
    roots |= {p for p, _ in living if _title(p).startswith("slurmstepd") and _listens_below(p, spools)}
    spaces = {_pid_space(p.pid) for p in roots} - {_pid_space(os.getpid()), ""}
    return list(_with_descendants(roots | {p for p, _ in living if spaces and _pid_space(p.pid) in spaces}))


def _with_descendants(roots: Iterable[psutil.Process]) -> set[psutil.Process]:
    family = set(roots)
    for process in roots:
        try:
            family.update(process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    return {p for p in family if p.pid != os.getpid()}


def kill_all(find: Callable[[], list[psutil.Process]], wait_seconds: float = 10.0) -> None:
    """Kill the processes that `find` returns until it returns none, because some of them may be starting others."""
    deadline = time.monotonic() + wait_seconds
    while (processes := find()) and time.monotonic() < deadline:
        for process in sorted(_with_descendants(processes), key=_order):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)  # not waited for: without an init that reaps them, orphans stay zombies


def _order(process: psutil.Process) -> tuple[bool, bool]:
    """Sort key for killing processes so that none can report another's death to Slurm, as in a power failure.

    The first process of a PID namespace comes first: its end kills the whole namespace at once.
    """
    return not _is_first(process.pid), not _title(process).startswith("slurm")


def _is_first(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in status.splitlines())


def _living() -> Iterable[tuple[psutil.Process, dict[str, str]]]:
    """Yield this user's processes (for root, everybody's) with the readable part of their environment."""
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()
        except psutil.Error:  # the process has ended, or belongs to another user
            continue


def _title(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _listens_below(process: psutil.Process, folders: Sequence[str]) -> bool:
    try:
        return any(str(c.laddr).startswith(tuple(folders)) for c in process.net_connections(kind="unix"))
    except psutil.Error:
        return False


def _pid_space(pid: int) -> str:
    """Return the PID namespace of a process; empty if the process has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
