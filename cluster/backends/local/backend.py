"""The local backend: virtual nodes on this machine, carried by a detached supervisor."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.backends.base import Backend, BackendState, Check
from cluster.backends.local.nodes import OUTER_TMPDIR_VARIABLE, render_script
from cluster.config import Resources
from cluster.errors import AlreadyRunningError
from cluster.gpus import deal_devices, machine_devices
from cluster.process.fork_server import FORK_SERVER_VARIABLE, ask_fork_server
from cluster.process.signals import STOP_SIGNALS
from cluster.run.attempts import begin_attempts
from cluster.run.directory import RunDir
from cluster.run.files import json_text, read_json, read_lines, write_all, write_json
from cluster.run.names import AGENTS, LOCAL_REQUEST, QUEUE, QUEUE_PROCESS, SUPERVISOR
from cluster.spec import Engine, RunState
from cluster.supervise.supervisor import BY_SUBMISSION, close_unfinished_attempt

LEAVING_SECONDS = 10.0


class LocalBackend(Backend):
    """Runs on this machine, as many nodes as asked for; a laptop's whole cluster."""

    ships_code = False  # the code that is there now is what one wants on a laptop

    def render(self, run: RunDir, resources: Resources) -> str:
        """The commands that a supervisor would start."""
        return render_script(f"runs/{run.id}", "1", resources, Engine(run.record["engine"]))

    def check_resources(self, resources: Resources) -> None:
        """Raise ConfigError for more GPUs than this machine has."""
        deal_devices(resources)

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Start a supervisor for the run; it goes on when this process and its terminal are gone."""
        self.check_resources(resources)
        _let_leave(run)
        if _alive(run):
            raise AlreadyRunningError(run.id, f"an active process ({_handle(run)})")
        close_unfinished_attempt(run, "its supervisor was killed, or this machine went down, before it could say how it ended")
        plain = resources.model_dump(mode="json")
        attempt = run.begin_attempt(
            resources=plain, backend="local", opened_by=BY_SUBMISSION, **_waits(after)
        )  # from now on a resumed run has no outcome
        write_json(run.path / LOCAL_REQUEST, {"attempt": attempt, "after": list(after)})
        pid = start_detached(
            [sys.executable, "-m", "cluster.backends.local.supervisor_main", str(run.path)], run.path / "supervisor.log"
        )
        write_json(run.path / SUPERVISOR, process_identity(pid))
        return f"local:{pid}"

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Start one process that carries all of them, `at_once` (unset: 1) at a time, each through a supervisor."""
        self.check_resources(resources)
        plain, head = resources.model_dump(mode="json"), runs[0]
        details = {"resources": plain, "backend": "local", "opened_by": BY_SUBMISSION, **_waits(after)}
        attempts = begin_attempts([run.path for run in runs], [details] * len(runs))
        # all lie under one root, and the first holds what concerns them all
        common = {"after": list(after), "queue": head.id}
        requests = zip(runs, attempts, strict=True)
        write_all({run.path / LOCAL_REQUEST: json_text({"attempt": number, **common}) for run, number in requests})
        write_json(head.path / QUEUE, {"runs": [run.id for run in runs], "at_once": at_once or 1})
        pid = start_detached([sys.executable, "-m", "cluster.backends.local.queue", str(head.path)], head.path / "queue.log")
        write_json(head.path / QUEUE_PROCESS, process_identity(pid))
        return [f"local:{pid}"] * len(runs)

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """What became of each run's supervisor."""
        return {run.id: self._state(run) for run in runs}

    def _state(self, run: RunDir) -> BackendState:
        outcome, attempts = run.last_outcome(), run.attempts()
        remedy = f"`ropewalk resume {run.id}` goes on from its last checkpoint"
        if _alive(run):
            if outcome is not None:
                return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, word="supervised")
            if not read_lines(run.attempt_dir(attempts[-1]) / AGENTS):
                word = "starting" if (run.path / SUPERVISOR).exists() else "queued"
                return BackendState(state=RunState.PENDING, word=word, reason=_waiting_for(run))
            return BackendState(state=RunState.RUNNING, word="supervised")
        if outcome is not None:
            if outcome.state.final:
                return BackendState(state=outcome.state, word="ended")
            return BackendState(state=outcome.state, word="ended", reason=f"nobody carries it; {remedy}", remedy=remedy)
        who = "its supervisor" if (run.path / SUPERVISOR).exists() else "the process that would have started it"
        return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"{who} died; {remedy}", remedy=remedy)

    def cancel(self, run: RunDir) -> None:
        """Ask the supervisor to let the run save and leave."""
        run.request_cancel()

    def checks(self) -> list[Check]:
        """What this machine offers."""
        memory = psutil.virtual_memory()
        shm = psutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None  # noqa: S108 - looked at, not written
        return [
            Check(name="cores", ok=True, detail=f"{os.cpu_count()} on this machine"),
            Check(name="GPUs", ok=True, detail=", ".join(machine_devices()) or "none"),
            Check(name="memory", ok=memory.available > 2 * 2**30, detail=f"{memory.available / 2**30:.1f} GiB available"),
            Check(
                name="shared memory",
                ok=shm is None or shm.free > 2**29,
                detail="none" if shm is None else f"{shm.free / 2**30:.1f} GiB free in /dev/shm (Ray wants 0.5)",
            ),
        ]


def start_detached(command: list[str], log: Path) -> int:
    """Start a process in a session of its own, which nobody waits for; returns its pid."""
    environment = dict(os.environ)
    if outer := environment.get(OUTER_TMPDIR_VARIABLE):  # it outlives the agent that this process belongs to, if it does
        environment["TMPDIR"] = outer
    if (template := environment.get(FORK_SERVER_VARIABLE)) and (pid := ask_fork_server(template, command, environment, log)):
        return pid
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644)]
    actions.append((os.POSIX_SPAWN_DUP2, 1, 2))  # type: ignore[arg-type]
    # it hears stops as soon as it can heed them
    return os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True, setsigmask=STOP_SIGNALS)


def process_identity(pid: int) -> dict[str, Any]:
    """A process by what no later process shares: pid and birth."""
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def _waits(after: Sequence[str]) -> dict[str, Any]:
    return {"after": list(after)} if after else {}


def _owner_of(run: RunDir) -> dict[str, Any] | None:
    """Whoever carries the run: its supervisor, or the queue in which it waits for one."""
    own = read_json(run.path / SUPERVISOR)
    if own:
        return dict(own)
    head = (read_json(run.path / LOCAL_REQUEST) or {}).get("queue")
    return read_json(run.path.parent / head / QUEUE_PROCESS) if head else None


def _alive(run: RunDir) -> bool:
    found = _owner_of(run)
    if not found:
        return False
    try:
        process = psutil.Process(found["pid"])
        return abs(process.create_time() - found["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _let_leave(run: RunDir) -> None:
    """A supervisor writes the final outcome before it has tidied up: wait for the rest."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while (outcome := run.last_outcome()) is not None and outcome.state.final and _alive(run) and time.monotonic() < deadline:
        time.sleep(0.05)


def _waiting_for(run: RunDir) -> str:
    request = read_json(run.path / LOCAL_REQUEST) or {}
    if request.get("after"):
        return f"waits for {', '.join(request['after'])}"
    if "queue" not in request or (run.path / SUPERVISOR).exists():
        return ""
    at_once = (read_json(run.path.parent / request["queue"] / QUEUE) or {}).get("at_once")
    return f"waits for its turn: {at_once} of its submission at a time"


def _handle(run: RunDir) -> str:
    return f"local:{(_owner_of(run) or {}).get('pid')}"
