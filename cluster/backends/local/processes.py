"""The detached processes of this machine's runs: how one is started, which is a run's, and whether it lives."""

import os
from pathlib import Path
from typing import Any

import psutil

from ropewalk.cluster.backends.local.nodes import OUTER_TMPDIR_VARIABLE
from ropewalk.cluster.backends.submission import submission_details
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.fork_server import FORK_SERVER_VARIABLE, ask_fork_server
from ropewalk.cluster.process.signals import STOP_SIGNALS
from ropewalk.cluster.run.context import OWN_VARIABLES
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.run.names import QUEUE_PROCESS, SUPERVISOR

SUPERVISOR_MODULE = "ropewalk.cluster.backends.local.supervisor_main"


def supervisor_command(run: RunDir) -> list[str]:
    """The command of a run's supervisor."""
    return module_command(SUPERVISOR_MODULE, str(run.path))


def start_detached(command: list[str], log: Path) -> int:
    """Start a process in a session of its own, which nobody waits for; returns its pid."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    if outer := environment.get(OUTER_TMPDIR_VARIABLE):  # it outlives the agent that this process belongs to, if it does
        environment["TMPDIR"] = outer
    if (server := environment.get(FORK_SERVER_VARIABLE)) and (pid := ask_fork_server(server, command, environment, log)):
        return pid
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644)]
    actions.append((os.POSIX_SPAWN_DUP2, 1, 2))  # type: ignore[arg-type]
    # it hears stops as soon as it can heed them
    return os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True, setsigmask=STOP_SIGNALS)


def identify(pid: int) -> dict[str, Any]:
    """A process by what no later process shares: its pid and its birth."""
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def record_supervisor(run: RunDir, pid: int) -> None:
    """Write down which process supervises a run."""
    write_json(run.path / SUPERVISOR, identify(pid))


def has_supervisor(run: RunDir) -> bool:
    """Whether a supervisor was ever started for the run; else it waits in a queue."""
    return (run.path / SUPERVISOR).exists()


def read_queue(run: RunDir, name: str) -> dict[str, Any]:
    """QUEUE or QUEUE_PROCESS of the queue that the run was submitted to; empty: it was submitted alone."""
    head = submission_details(run).get("queue")
    return dict(read_json(run.path.parent / head / name) or {}) if head else {}


def process_of(run: RunDir) -> dict[str, Any]:
    """The process that runs the run, as `identify` tells it: its supervisor, or the queue that will start one; empty: none."""
    return dict(read_json(run.path / SUPERVISOR) or read_queue(run, QUEUE_PROCESS))


def is_alive(run: RunDir) -> bool:
    """Whether the run's process lives."""
    found = process_of(run)
    if not found:
        return False
    try:
        process = psutil.Process(found["pid"])
        return abs(process.create_time() - found["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
