"""Find and kill what runs in a test cluster, whoever started it and whatever it has become."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil

MARK = "ROPEWALK_SLURM_LAB"  # in the environment of every daemon: the lab's folder and what it is, such as /tmp/lab:n1


def marked(folder: Path, what: str = "") -> list[psutil.Process]:
    """A lab's daemons, or the one that is `what`: a node's name, slurmctld, slurmdbd, mariadbd or munged."""
    marks = ((process, environment.get(MARK, "")) for process, environment in _living())
    return [process for process, mark in marks if (mark == f"{folder}:{what}" if what else mark.startswith(f"{folder}:"))]


def on_nodes(folder: Path, names: Sequence[str]) -> list[psutil.Process]:
    """All processes on some nodes: slurmd, its steps, and whatever those have started."""
    conf = str(folder / "etc/slurm.conf")
    marks, spools = {f"{folder}:{name}" for name in names}, [f"{folder}/spool/{name}/" for name in names]
    living = list(_living())
    roots = {p for p, e in living if e.get(MARK) in marks}
    # a task that has lost its parents still knows where it is; SLURM_CONF tells labs with equal names apart
    roots |= {p for p, e in living if e.get("SLURMD_NODENAME") in names and e.get("SLURM_CONF", conf) == conf}
    # slurmstepd overwrites its environment with its title, but listens on a socket in its slurmd's spool
    roots |= {p for p, _ in living if _title(p).startswith("slurmstepd") and _listens_below(p, spools)}
    spaces = {_pid_space(p.pid) for p in roots} - {_pid_space(os.getpid()), ""}
    return list(_with_descendants(roots | {p for p, _ in living if spaces and _pid_space(p.pid) in spaces}))


def _with_descendants(roots: Iterable[psutil.Process]) -> set[psutil.Process]:
    found = set(roots)
    for process in list(found):
        try:
            found.update(process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    return {p for p in found if p.pid != os.getpid()}


def kill_all(find: Callable[[], list[psutil.Process]], wait_seconds: float = 10.0) -> None:
    """Kill the processes that `find` finds until it finds none: some may just be starting others."""
    deadline = time.monotonic() + wait_seconds
    while (found := find()) and time.monotonic() < deadline:
        for process in sorted(_with_descendants(found), key=_order):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)  # not waited for: nobody's children stay zombies where init does not reap


def _order(process: psutil.Process) -> tuple[bool, bool]:
    """The order in which processes are killed, so that none sees another die and tells Slurm, as in a power cut.

    The first process of a PID namespace comes first: all of the namespace ends with it at once.
    """
    return not _is_first(process.pid), not _title(process).startswith("slurm")


def _is_first(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in status.splitlines())


def _living() -> Iterable[tuple[psutil.Process, dict[str, str]]]:
    """This user's processes (root's: everybody's) with what can be read of their environment."""
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()
        except psutil.Error:  # it ended while we looked, or is another user's
            continue


def _title(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _listens_below(process: psutil.Process, places: Sequence[str]) -> bool:
    try:
        return any(str(c.laddr).startswith(tuple(places)) for c in process.net_connections(kind="unix"))
    except psutil.Error:
        return False


def _pid_space(pid: int) -> str:
    """The PID namespace of a process; empty: the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
