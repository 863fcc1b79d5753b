"""The nodes of a Slurm allocation, and those that an elastic run gets in addition."""

import logging
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.process.forking import Process
from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.process.ports import ReservedPort
from ropewalk.cluster.process.signals import SignalFlag, stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.supervise.agent_environment import agent_environment
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, StoreSpec
from ropewalk.slurm.batch.container import wrap
from ropewalk.slurm.batch.script import extra_node_name, render_extra_node
from ropewalk.slurm.commands import Slurm, plain_environment
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.runtime.job_details import ends_at, why_taken
from ropewalk.slurm.runtime.watchdog import Watchdog
from ropewalk.slurm.times import FOREVER

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0  # between two questions to the controller, while an elastic run waits for nodes
ASK_AGAIN_SECONDS = 30.0  # after a node that was asked for has come and gone
END_SECONDS = 10.0
# the last: Slurm took the node out of the job again, as it came back while Slurm still ended the job's earlier life there
NODE_FAILURES = ("node failure", "communication", "requested node configuration is not available")
# deaf to stops until it can save: one that comes while Python starts would kill it; it is said again
DEAF_AT_FIRST = ("sh", "-c", "trap '' USR2 TERM; exec \"$@\"", "agent")
UP_STATES = ("alloc", "mix", "idle", "comp", "resv", "plnd")


@dataclass
class Slot:
    """One node, and the Slurm job that holds it for the run."""

    host: str
    job: str
    dead: bool = False
    busy: bool = False


class SlurmAllocation(Allocation):
    """The nodes of a Slurm job. Each agent is a step of its own, so that a node that dies takes along no other agent.

    It is made inside the job.
    """

    name = "slurm"
    owner_limits_time = True  # Slurm signals the job before its limit

    def __init__(
        self, run: RunDir, resources: Resources, profile: SlurmProfile, slurm: Slurm, *, job: str, hosts: list[str]
    ) -> None:
        self.run, self.resources, self.profile, self.job, self.slurm = run, resources, profile, job, slurm
        self.slots = {index: Slot(host=host, job=job) for index, host in enumerate(hosts)}
        self.asked_to_stop = SignalFlag()  # set by the coordinator's signal handler
        self.ray_token = secrets.token_hex(32)  # lives in memory only
        self.extra_node_jobs: set[str] = set()  # asked for, and holding no slot yet
        self.watchdog = Watchdog(run, profile, self._start_elsewhere, self.end)
        self._store_port = ReservedPort()
        self._next_look = self._next_request = 0.0
        self._notice = ""

    # --- the nodes of an attempt

    def initial_nodes(self) -> list[int]:
        """Return all nodes that are alive, or of an elastic run as many of them as the user wants."""
        for slot in self.slots.values():
            slot.busy = False
        alive = [index for index, slot in self.slots.items() if not slot.dead]
        chosen = alive[: self.run.wanted_nodes or None] if self.resources.nodes.elastic else alive
        for index in chosen:
            self.slots[index].busy = True
        return chosen

    def address(self, node: int) -> str:
        """Return Slurm's name of a node, under which the other nodes reach it."""
        return self.slots[node].host

    def free_port(self) -> int:
        """Reserve a port of the first node, on which this process runs."""
        return self._store_port.take(self.slots[0].host)

    def start(self, node: int, spec: AgentSpec | StoreSpec, log: Path) -> Popen[bytes]:
        """Start what `spec` says as a step of one task on a node; srun hands SIGUSR2 on to it."""
        words, more = wrap([*DEAF_AT_FIRST, *spec.command()], self.profile, self.run)
        return self.open([*self.srun(node), *more, *words], log)

    def start_store(self, spec: StoreSpec, log: Path) -> Popen[bytes]:
        """Start the store here, and not as a step, which Slurm would end before the agents have left."""
        words, more = wrap(spec.command(), self.profile, self.run)
        if more:  # this runtime starts nothing but steps
            return self.open([*self.srun(0), *more, *words], log)
        return self.open(words, log)

    def open(self, words: list[str], log: Path) -> Popen[bytes]:
        """Start a process here, with what an agent's environment holds; its output goes to the end of `log`."""
        values = {**plain_environment(), **self._environment()}
        with log.open("ab") as stream, stop_signals_blocked():  # srun as it starts would die of a stop
            return Popen(words, stdout=stream, stderr=stream, stdin=DEVNULL, env=values)

    def srun(self, node: int) -> list[str]:
        """The srun command of a step of one task on a node."""
        slot = self.slots[node]
        words = ["srun", f"--jobid={slot.job}", "--nodes=1", "--ntasks=1", f"--nodelist={slot.host}", "--overlap"]
        words += ["--kill-on-bad-exit=0", "--wait=0", "--mpi=none", "--cpu-bind=none", "--input=none", "--export=ALL"]
        if self.resources.cpus:
            words.append(f"--cpus-per-task={self.resources.cpus}")
        return [*words, "--no-kill"] if self.resources.nodes.elastic else words

    def _start_elsewhere(self, words: list[str], log: Path) -> Popen[bytes] | None:
        """Start a step on a node of this job that is not the first; None: there is none."""
        first = self.slots[0].host
        others = [n for n, slot in self.slots.items() if slot.job == self.job and not slot.dead and slot.host != first]
        return self.open([*self.srun(others[0]), *words], log) if others else None

    def _environment(self) -> dict[str, str]:
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
        # a profile's gres may ask for GPUs where resources.gpus does not; Slurm sets the variable in jobs that have some
        gpus = self.resources.gpus or int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
        return agent_environment(self.run, self.resources, cpus=cpus, gpus=gpus, ray_token=self.ray_token)

    def end(self, process: Process) -> None:
        """Kill a step and its srun, or a process that was started here, with all descendants."""
        is_step = Path(str(process.args[0])).name == "srun"
        if process.poll() is None and is_step:
            process.terminate()  # srun then kills the step
            with suppress(TimeoutExpired):
                process.wait(END_SECONDS)
        end(family(process.pid))
        process.wait()

    # --- losing, getting and giving back

    def loss_reason(self, node: int, code: int) -> str:
        """Say why a node is lost whose agent ended with `code` and no word; of a node's failure srun only tells 1."""
        last = (self._log_of(node).read_text(errors="replace").splitlines() or [""])[-3:] if self._log_of(node).exists() else []
        said = [line.lower() for line in last if line.startswith("srun: ")]
        if any(word in line for line in said for word in NODE_FAILURES):
            return "Slurm says node failure"
        if code < 0 or code > 128:
            return f"killed by signal {-code if code < 0 else code - 128}"
        try:
            state = self.slurm.node_state(self.slots[node].host)
        except BackendError:
            return ""
        return "" if state.startswith(UP_STATES) and not state.endswith("*") else f"Slurm says {state}"

    def _log_of(self, node: int) -> Path:
        return self.run.log_dir(self.run.attempts()[-1]) / f"node-{node}.log"

    def mark_lost(self, node: int) -> None:
        """Stop using a node that died or that Slurm wants back."""
        slot = self.slots[node]
        slot.dead, slot.busy = True, False
        self._next_request = time.monotonic() + (0 if slot.job == self.job else ASK_AGAIN_SECONDS)
        if slot.job != self.job:
            self._cancel(slot.job)

    def release(self, node: int) -> None:
        """Give a node back to Slurm for good: the job shrinks by it, or the small job that held it ends."""
        slot = self.slots[node]
        if slot.job != self.job:
            self.mark_lost(node)
            return
        slot.dead, slot.busy = True, False
        kept = ",".join(s.host for s in self.slots.values() if s.job == self.job and not s.dead)
        try:
            self.slurm.update(self.job, NodeList=kept)
        except BackendError as error:
            log.warning("node %s is not used any more, but could not be given back: %s", slot.host, error)
        self._remove_resize_scripts()

    def _remove_resize_scripts(self) -> None:
        for path in Path().glob(f"slurm_job_{self.job}_resize.*"):
            path.unlink()

    def acquire(self, wanted: int) -> list[int]:
        """Return nodes that can join now, and ask Slurm for those that are missing.

        Slurm adds no node to a running job, so a small job of its own holds each.
        """
        self.watchdog.tend()
        free = [index for index, slot in self.slots.items() if not slot.dead and not slot.busy][: max(wanted, 0)]
        missing = max(wanted, 0) - len(free)
        now = time.monotonic()
        if now >= self._next_look and (missing or self.extra_node_jobs):
            self._next_look = now + LOOK_SECONDS
            free += self._arrived(missing)
            self._ask_for(max(wanted, 0) - len(free) - len(self.extra_node_jobs))
        for index in free:
            self.slots[index].busy = True
        return free

    def _arrived(self, missing: int) -> list[int]:
        """Make slots of the extra nodes whose jobs run by now, and cancel the jobs that are not wanted any more."""
        if not self.extra_node_jobs:
            return []
        try:
            # by name: an id that Slurm does not know any more would be an error, or another's job by now
            jobs = {job.id: job for job in self.slurm.named(extra_node_name(self.job))}
        except BackendError as error:
            log.warning("cannot see the nodes that were asked for: %s", error)
            return []
        new: list[int] = []
        for job_id in sorted(self.extra_node_jobs):
            job = jobs.get(job_id)
            if job is not None and job.state == "RUNNING" and len(new) < missing:
                self.extra_node_jobs.discard(job_id)
                if job.nodes in self._hosts():  # two that were asked for together got the same
                    self._cancel(job_id)
                    continue
                index = max(self.slots) + 1
                self.slots[index] = Slot(host=job.nodes, job=job_id)
                new.append(index)
            elif job is None or job.state not in {"PENDING", "CONFIGURING", "RUNNING"}:
                self.extra_node_jobs.discard(job_id)
                self._next_request = time.monotonic() + ASK_AGAIN_SECONDS
        for _ in range(len(self.extra_node_jobs) - (missing - len(new))):
            self._cancel(self.extra_node_jobs.pop())
        return new

    def _ask_for(self, count: int) -> None:
        if count <= 0 or time.monotonic() < self._next_request:
            return
        try:
            left = ends_at(self.slurm.job_details(self.job)) - time.time()
            minutes = int(left // 60) if left < FOREVER else None
            if minutes == 0:
                return  # not worth a new group
            script = render_extra_node(self.run, self.resources, self.profile, self.job, minutes)
            place = self.run.attempt_dir(self.run.attempts()[-1]) / "companion.sbatch"
            place.write_text(script)
            away = ",".join(sorted({*self._hosts(), *filter(None, [self.profile.exclude])}))
            self.extra_node_jobs |= {self.slurm.sbatch(place, f"--exclude={away}") for _ in range(count)}
            self.run.event("nodes_asked_for", count=count, jobs=sorted(self.extra_node_jobs))
        except BackendError as error:
            log.warning("cannot ask for %d more nodes: %s", count, error)
            self._next_request = time.monotonic() + ASK_AGAIN_SECONDS

    def _hosts(self) -> set[str]:
        """The run's nodes: on a shared cluster Slurm might give it the same node twice."""
        return {slot.host for slot in self.slots.values() if not slot.dead}

    def _cancel(self, job: str) -> None:
        try:
            self.slurm.cancel(job)
        except BackendError as error:
            log.warning("job %s is not wanted any more, but could not be cancelled: %s", job, error)

    # --- whether we may stay

    def stop_reason(self) -> str:
        """Say why Slurm wants the nodes back, once it has sent a signal."""
        if self.asked_to_stop.is_set() and not self._notice:
            self._notice = self.query_stop_reason() or "signal"
        return self._notice

    def query_stop_reason(self) -> str:
        """Ask Slurm why it takes the nodes away; empty if it does not."""
        try:
            return why_taken(self.slurm.job_details(self.job), self.resources.grace_seconds)
        except BackendError as error:
            log.warning("cannot ask Slurm why: %s", error)
            return "signal"

    def can_retry(self) -> bool:
        """Whether the next attempt may start here at once: nobody wants the nodes, and there are enough of them."""
        alive = sum(not slot.dead for slot in self.slots.values())
        needed = self.resources.nodes.least
        if self.asked_to_stop.is_set() or alive < needed or self.slots[0].dead:
            return False
        if why := self.query_stop_reason():
            log.info("the nodes are wanted back: %s", why)
            return False
        return True

    def close(self) -> None:
        """End the watchdog, and cancel the jobs that hold or wait for extra nodes."""
        self._store_port.release()
        self.watchdog.close()
        held = {slot.job for slot in self.slots.values() if slot.job != self.job and not slot.dead}
        if held or self.extra_node_jobs:
            self._cancel(f"--name={extra_node_name(self.job)}")
