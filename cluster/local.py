"""The local backend: virtual nodes on this machine, carried by a detached supervisor."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from cluster.backend import BackendState, Check, Profile
from cluster.config import Resources
from cluster.errors import BackendError
from cluster.files import read_json, write_json
from cluster.run_dir import RunDir
from cluster.spec import Engine, RunState
from cluster.virtual_nodes import AGENTS, render_script


class LocalBackend:
    """Runs on this machine, as many nodes as asked for; a laptop's whole cluster."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def render(self, run: RunDir, resources: Resources) -> str:
        """The commands that a supervisor would start."""
        engine = Engine(run.record["engine"])
        return render_script(f"runs/{run.id}", "1", resources, engine, "127.0.0.1:PORT" if engine is Engine.RANKS else "")

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Start a supervisor for the run; it goes on when this process and its terminal are gone."""
        if _alive(run):
            raise BackendError(f"{run.id} is being carried already ({_handle(run)}); `ropewalk cancel {run.id}` ends it")
        plain = resources.model_dump(mode="json")
        attempt = run.begin_attempt(resources=plain, backend="local")  # from now on a resumed run has no outcome
        write_json(run.path / "local.json", {"attempt": attempt, "resources": plain, "after": list(after)})
        pid = _spawn_detached([sys.executable, "-m", "cluster.supervisor", str(run.path)], run.path / "supervisor.log")
        write_json(run.path / "supervisor.json", {"pid": pid, "created": psutil.Process(pid).create_time()})
        return f"local:{pid}"

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """What became of each run's supervisor."""
        return {run.id: self._state(run) for run in runs}

    def _state(self, run: RunDir) -> BackendState:
        outcome, attempts = run.last_outcome(), run.attempts()
        remedy = f"`ropewalk resume {run.id}` goes on from its last checkpoint"
        if _alive(run):
            if outcome is not None:
                return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, word="supervised")
            if not (run.attempt_dir(attempts[-1]) / AGENTS).exists():
                return BackendState(state=RunState.PENDING, word="starting", reason=_waiting_for(run))
            return BackendState(state=RunState.RUNNING, word="supervised")
        if outcome is not None:
            reason = "" if outcome.state.final else f"nobody carries it; {remedy}"
            return BackendState(state=outcome.state, word="ended", reason=reason)
        return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"its supervisor died; {remedy}")

    def cancel(self, run: RunDir) -> None:
        """Ask the supervisor to let the run save and leave."""
        run.request_cancel()

    def checks(self) -> list[Check]:
        """What this machine offers."""
        memory = psutil.virtual_memory()
        shm = psutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None  # noqa: S108 - looked at, not written
        return [
            Check(name="cores", ok=True, detail=f"{os.cpu_count()} on this machine"),
            Check(name="memory", ok=memory.available > 2 * 2**30, detail=f"{memory.available / 2**30:.1f} GiB available"),
            Check(
                name="shared memory",
                ok=shm is None or shm.free > 2**29,
                detail="none" if shm is None else f"{shm.free / 2**30:.1f} GiB free in /dev/shm (Ray wants 0.5)",
            ),
        ]


def _spawn_detached(command: list[str], log: Path) -> int:
    """Start a process in a session of its own, which nobody waits for; returns its pid."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644)]
    actions.append((os.POSIX_SPAWN_DUP2, 1, 2))  # type: ignore[arg-type]
    return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)


def _alive(run: RunDir) -> bool:
    found = read_json(run.path / "supervisor.json")
    if not found:
        return False
    try:
        process = psutil.Process(found["pid"])
        return abs(process.create_time() - found["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _waiting_for(run: RunDir) -> str:
    after = (read_json(run.path / "local.json") or {}).get("after")
    return f"waits for {', '.join(after)}" if after else ""


def _handle(run: RunDir) -> str:
    return f"local:{(read_json(run.path / 'supervisor.json') or {}).get('pid')}"
