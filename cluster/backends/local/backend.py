"""The local backend: virtual nodes on this machine, and a detached supervisor for every run."""

import os
import time
from collections.abc import Mapping, Sequence

import psutil
from pydantic import Field

from ropewalk.cluster.backends.base import Backend, BackendState, Check, Profile
from ropewalk.cluster.backends.local.nodes import render_script
from ropewalk.cluster.backends.local.processes import (
    has_supervisor,
    identify,
    is_alive,
    process_of,
    read_queue,
    record_supervisor,
    start_detached,
    supervisor_command,
)
from ropewalk.cluster.backends.submission import dependencies, is_over, next_attempt, open_attempts, refuse_short_limit
from ropewalk.cluster.config import Resources, Section
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import AlreadyRunningError
from ropewalk.cluster.gpus import deal_devices, machine_devices
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines, write_json
from ropewalk.cluster.run.names import AGENTS, QUEUE, QUEUE_PROCESS
from ropewalk.cluster.spec import Engine, RunState
from ropewalk.cluster.supervise.supervisor import close_unfinished_attempt

LEAVING_SECONDS = 10.0


class LocalProfile(Section):
    """The profile of this machine, where it has one."""

    runs: str | None = Field(default=None, description="where runs live")


class LocalBackend(Backend):
    """This machine as a cluster, with as many virtual nodes as a run asks for."""

    ships_code = False  # the code that is there now is what one wants on a laptop

    def __init__(self, profile: Profile) -> None:
        """Take a profile of this machine. Raises ConfigError for a key that such a profile does not have."""
        super().__init__(profile)
        load_section(LocalProfile, profile.options, f"cluster {profile.name!r}")

    def render(self, run: RunDir, resources: Resources) -> str:
        """The commands that the run's supervisor would start."""
        return render_script(f"runs/{run.id}", "1", resources, Engine(run.record["engine"]))

    def check_resources(self, resources: Resources) -> None:
        """Raise ConfigError for more GPUs than this machine has, and for a time limit that leaves no time to work."""
        refuse_short_limit(resources)
        deal_devices(resources)

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Start a supervisor for the run; it goes on when this process and its terminal are gone."""
        self.check_resources(resources)
        _let_leave(run)
        if is_alive(run):
            raise AlreadyRunningError(run.id, f"an active process (local:{process_of(run)['pid']})")
        close_unfinished_attempt(run, "its supervisor was killed, or this machine went down, before it could say how it ended")
        number = next_attempt(run)
        open_attempts([run], resources, [{"backend": "local", "after": list(after)}], number)  # a resumed run has no outcome now
        run.make_folders(number)
        pid = start_detached(supervisor_command(run), run.path / "supervisor.log")
        record_supervisor(run, pid)
        return f"local:{pid}"

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Start one process that runs all of them, `at_once` (unset: 1) at a time, each through a supervisor."""
        self.check_resources(resources)
        head = runs[0]  # all lie under one root, and the first holds what concerns them all
        details = {"backend": "local", "after": list(after), "queue": head.id}
        open_attempts(runs, resources, [details] * len(runs), next_attempt(head))
        write_json(head.path / QUEUE, {"runs": [run.id for run in runs], "at_once": at_once or 1})
        pid = start_detached(module_command("ropewalk.cluster.backends.local.queue", str(head.path)), head.path / "queue.log")
        write_json(head.path / QUEUE_PROCESS, identify(pid))
        return [f"local:{pid}"] * len(runs)

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """The state of each run, by its files and by whether its supervisor lives."""
        return {run.id: self._state(run) for run in runs}

    def _state(self, run: RunDir) -> BackendState:
        outcome, attempts = run.last_outcome(), run.attempts()
        remedy = f"`ropewalk resume {run.id}` goes on from its last checkpoint"
        if is_alive(run):
            if outcome is not None:
                return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, word="supervised")
            if not read_lines(run.attempt_dir(attempts[-1]) / AGENTS):
                word = "starting" if has_supervisor(run) else "queued"
                return BackendState(state=RunState.PENDING, word=word, reason=_waiting_for(run))
            return BackendState(state=RunState.RUNNING, word="supervised")
        if outcome is not None:
            if outcome.state.final:
                return BackendState(state=outcome.state, word="ended")
            return BackendState(state=outcome.state, word="ended", reason=f"no process is running it; {remedy}", remedy=remedy)
        who = "its supervisor" if has_supervisor(run) else "the process that would have started it"
        return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"{who} died; {remedy}", remedy=remedy)

    def cancel(self, run: RunDir) -> None:
        """Ask the supervisor to let the run save and leave."""
        run.request_cancel()

    def checks(self) -> list[Check]:
        """The cores, GPUs, memory and shared memory of this machine."""
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


def _let_leave(run: RunDir) -> None:
    """Wait until the supervisor of a run that is over has left: it writes the final outcome before it has tidied up."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while is_over(run) and is_alive(run) and time.monotonic() < deadline:
        time.sleep(0.05)


def _waiting_for(run: RunDir) -> str:
    if others := [other.id for other in dependencies(run) if not is_over(other)]:
        return f"waits for {', '.join(others)}"
    if has_supervisor(run) or not (at_once := read_queue(run, QUEUE).get("at_once")):
        return ""
    return f"waits for its turn: {at_once} of its submission at a time"
