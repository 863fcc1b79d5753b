"""Detached processes of local runs: start, identification, liveness."""

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
from ropewalk.cluster.secrets.variables import without_secrets

SUPERVISOR_MODULE = "ropewalk.cluster.backends.local.supervisor_main"


def supervisor_command(run: RunDir) -> list[str]:
    """Return the command of a run's supervisor."""
    return module_command(SUPERVISOR_MODULE, str(run.path))


def start_detached(command: list[str], log: Path) -> int:
    """Start a process in a new session, without waiting for it, and return its pid."""
    environment = {name: value for name, value in without_secrets(os.environ).items() if name not in OWN_VARIABLES}
    if outer := environment.get(OUTER_TMPDIR_VARIABLE):  # the new process may outlive the virtual node that this one is on
        environment["TMPDIR"] = outer
    if (server := environment.get(FORK_SERVER_VARIABLE)) and (pid := ask_fork_server(server, command, environment, log)):
        return pid
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644)]
    actions.append((os.POSIX_SPAWN_DUP2, 1, 2))  # type: ignore[arg-type]
    # stop signals are blocked until the new process can handle them
    return os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True, setsigmask=STOP_SIGNALS)


def identify(pid: int) -> dict[str, Any]:
    """Return an identification that no later process shares: pid and creation time."""
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def record_supervisor(run: RunDir, pid: int) -> None:
    """Record the process that supervises a run."""
    write_json(run.path / SUPERVISOR, identify(pid))


def has_supervisor(run: RunDir) -> bool:
    """Return True if a supervisor was ever started for the run; otherwise the run waits in a queue."""
    return (run.path / SUPERVISOR).exists()


def read_queue(run: RunDir, name: str) -> dict[str, Any]:
    """Read QUEUE or QUEUE_PROCESS of the queue that the run was submitted to; empty if it was submitted alone."""
    head = submission_details(run).get("queue")
    return dict(read_json(run.path.parent / head / name) or {}) if head else {}


def process_of(run: RunDir) -> dict[str, Any]:
    """Return the identification of the run's supervisor, or of the queue that will start one; empty if there is neither."""
    return dict(read_json(run.path / SUPERVISOR) or read_queue(run, QUEUE_PROCESS))


def is_alive(run: RunDir) -> bool:
    """Return True if the run's supervisor or queue is running."""
    identity = process_of(run)
    if not identity:
        return False
    try:
        process = psutil.Process(identity["pid"])
        return abs(process.create_time() - identity["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
