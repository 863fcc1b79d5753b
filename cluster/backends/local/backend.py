"""The local backend: every run has a detached supervisor and virtual nodes on this machine."""

import os
import time
from collections.abc import Mapping, Sequence

import psutil
from pydantic import Field

from ropewalk.cluster.backends.base import Backend, BackendState, Check, GpuSupply, NodeProgram, Profile
from ropewalk.cluster.backends.local.held_gpus import HeldGpus
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
from ropewalk.cluster.config import Resources
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.data_mounts import MOUNTS_HELP, Mounts
from ropewalk.cluster.errors import AlreadyRunningError, ConfigError
from ropewalk.cluster.gpus import deal_devices, machine_devices
from ropewalk.cluster.installed import REMEDY, is_light
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines, write_json
from ropewalk.cluster.run.names import AGENTS, QUEUE, QUEUE_PROCESS
from ropewalk.cluster.section import Section
from ropewalk.cluster.spec import Engine, RunState
from ropewalk.cluster.supervise.supervisor import close_unfinished_attempt

LEAVING_SECONDS = 10.0


class LocalProfile(Section):
    """Keys of a cluster profile with `backend: local`."""

    runs: str | None = Field(default=None, description="directory of the runs")
    mounts: Mounts = Field(default={}, description=MOUNTS_HELP)


class LocalBackend(Backend):
    """This machine as a cluster, with as many virtual nodes as a run requests."""

    ships_code = False  # runs use the project's current code

    def __init__(self, profile: Profile) -> None:
        """Check the profile's keys. Raises ConfigError."""
        super().__init__(profile)
        self.profile = load_section(LocalProfile, profile.options, f"cluster {profile.name!r}")

    @property
    def mounts(self) -> Mapping[str, str]:
        return self.profile.mounts

    def render(self, run: RunDir, resources: Resources) -> str:
        return render_script(str(run.path), "1", resources, Engine(run.record["engine"]))

    def check_resources(self, resources: Resources) -> None:
        """Raise ConfigError if this machine has too few GPUs, or the time limit is not longer than the grace period."""
        refuse_short_limit(resources)
        deal_devices(resources)

    def gpu_supply(self) -> GpuSupply:
        count = len(machine_devices())
        return GpuSupply(per_node=count, owner="this machine has", unoccupied=tuple(HeldGpus().unoccupied()) if count else ())

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Start a supervisor for the run; it outlives this process and its terminal."""
        self.check_resources(resources)
        _await_exit(run)
        if is_alive(run):
            raise AlreadyRunningError(run.id, f"an active process (local:{process_of(run)['pid']})")
        close_unfinished_attempt(run, "its supervisor was killed, or this machine went down, before an outcome was recorded")
        number = next_attempt(run)
        open_attempts([run], resources, [{"backend": "local", "after": list(after)}], number)  # clears a resumed run's outcome
        run.make_folders(number)
        pid = start_detached(supervisor_command(run), run.path / "supervisor.log")
        record_supervisor(run, pid)
        return f"local:{pid}"

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Start one queue process that runs `at_once` (default 1) of the runs at a time, each with its own supervisor."""
        self.check_resources(resources)
        head = runs[0]  # all runs are in one folder; the first one holds the files of the queue
        details = {"backend": "local", "after": list(after), "queue": head.id}
        open_attempts(runs, resources, [details] * len(runs), next_attempt(head))
        write_json(head.path / QUEUE, {"runs": [run.id for run in runs], "at_once": at_once or 1})
        pid = start_detached(module_command("ropewalk.cluster.backends.local.queue", str(head.path)), head.path / "queue.log")
        write_json(head.path / QUEUE_PROCESS, identify(pid))
        return [f"local:{pid}"] * len(runs)

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Return the state of each run, from its files and the liveness of its supervisor."""
        return {run.id: self._state(run) for run in runs}

    def _state(self, run: RunDir) -> BackendState:
        outcome, attempts = run.last_outcome(), run.attempts()
        remedy = f"`ropewalk resume {run.id}` goes on from its last checkpoint"
        if is_alive(run):
            if outcome is not None:
                return BackendState(state=outcome.state if outcome.state.final else RunState.REQUEUED, word="supervised")
            if not read_lines(run.attempt_dir(attempts[-1]) / AGENTS):
                word = "starting" if has_supervisor(run) else "queued"
                return BackendState(state=RunState.PENDING, word=word, reason=_pending_reason(run))
            return BackendState(state=RunState.RUNNING, word="supervised")
        if outcome is not None:
            if outcome.state.final:
                return BackendState(state=outcome.state, word="ended")
            return BackendState(state=outcome.state, word="ended", reason=f"no process is running it; {remedy}", remedy=remedy)
        process = "its supervisor" if has_supervisor(run) else "the queue that would have started it"
        return BackendState(state=RunState.UNKNOWN, word="lost", reason=f"{process} died; {remedy}", remedy=remedy)

    def check_access(self) -> None:
        if is_light():
            raise ConfigError(f"this machine has only what submits runs to clusters (--on CLUSTER); to run jobs here: {REMEDY}")

    def shell_command(self, run: RunDir, program: NodeProgram) -> list[str]:
        return module_command(program.module, str(run.path), "--", *program.command)

    def cancel(self, run: RunDir) -> None:
        run.request_cancel()

    def checks(self) -> list[Check]:
        memory = psutil.virtual_memory()
        shm = psutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None  # noqa: S108 - only queried
        return [
            Check(name="cores", ok=True, detail=f"{os.cpu_count()} on this machine"),
            Check(name="GPUs", ok=True, detail=", ".join(machine_devices()) or "none"),
            Check(name="memory", ok=memory.available > 2 * 2**30, detail=f"{memory.available / 2**30:.1f} GiB available"),
            Check(
                name="shared memory",
                ok=shm is None or shm.free > 2**29,
                detail="none" if shm is None else f"{shm.free / 2**30:.1f} GiB free in /dev/shm (Ray needs 0.5)",
            ),
        ]


def _await_exit(run: RunDir) -> None:
    """Wait until the supervisor of an ended run has exited: it records the final outcome before it cleans up."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while is_over(run) and is_alive(run) and time.monotonic() < deadline:
        time.sleep(0.05)


def _pending_reason(run: RunDir) -> str:
    if others := [other.run.id for other in dependencies(run) if not is_over(other.run)]:
        return f"waits for {', '.join(others)}"
    if has_supervisor(run) or not (at_once := read_queue(run, QUEUE).get("at_once")):
        return ""
    return f"waits in its submission's queue, which runs {at_once} at a time"
