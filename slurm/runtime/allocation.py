"""Nodes of a Slurm job, and additional nodes that an elastic run requests."""

import logging
import math
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
from ropewalk.cluster.process.signals import SignalFlag, stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.variables import FOLDER_VARIABLE, secrets_folder
from ropewalk.cluster.supervise.agent_environment import agent_environment
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, GroupServerSpec
from ropewalk.slurm.batch.container import wrap
from ropewalk.slurm.batch.script import extra_node_name, render_extra_node
from ropewalk.slurm.commands import Slurm, plain_environment
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.runtime.job_details import ends_at, slurm_stop_reason
from ropewalk.slurm.runtime.watchdog import Watchdog
from ropewalk.slurm.times import FOREVER

log = logging.getLogger(__name__)

POLL_SECONDS = 3.0  # between two queries of the controller while an elastic run waits for nodes
RETRY_SECONDS = 30.0  # before more nodes are requested after an additional one was lost
AVOID_SECONDS = 600.0  # before a machine that was lost is taken again by a run that has spare nodes
END_SECONDS = 10.0
# srun's messages for a lost node; the last: the node came back while Slurm was still ending the job's earlier tasks there
NODE_FAILURES = ("node failure", "communication", "requested node configuration is not available")
JOB_ENDS = "expired or invalid job"  # srun's message while Slurm ends the job
# ignore stop signals until the agent handles them: one that arrives while Python starts would kill it; the signal is repeated
IGNORE_STOPS = ("sh", "-c", "trap '' USR2 TERM; exec \"$@\"", "agent")
UP_STATES = ("alloc", "mix", "idle", "comp", "resv", "plnd")


@dataclass
class Slot:
    """A node, and the Slurm job that holds it for the run."""

    host: str
    job: str
    dead: bool = False
    busy: bool = False
    lost_at: float = -math.inf  # monotonic time


class SlurmAllocation(Allocation):
    """Nodes of the Slurm job that this process is in. Each agent is a step, so that a failing node ends no other agent."""

    name = "slurm"
    owner_limits_time = True  # Slurm signals the job before its limit

    def __init__(
        self, run: RunDir, resources: Resources, profile: SlurmProfile, slurm: Slurm, *, job: str, hosts: list[str]
    ) -> None:
        self.run, self.resources, self.profile, self.job, self.slurm = run, resources, profile, job, slurm
        self.slots = {index: Slot(host=host, job=job) for index, host in enumerate(hosts)}
        self.stop_requested = SignalFlag()  # the coordinator replaces it by that of its signal handler
        self.ray_token = secrets.token_hex(32)  # never written to disk
        self.extra_node_jobs: set[str] = set()  # submitted, not yet running
        self.watchdog = Watchdog(run, profile, self._start_elsewhere, self.end)
        self._next_poll = self._next_request = 0.0
        self._notice = ""

    # --- the nodes of an attempt

    def initial_nodes(self) -> list[int]:
        """Return all live nodes, the spare ones among them; of an elastic run at most as many as the user set with `scale`."""
        for slot in self.slots.values():
            slot.busy = False
        alive = [index for index, slot in self.slots.items() if not slot.dead]
        chosen = alive[: self.resources.wanted_nodes(self.run.wanted_nodes)] if self.resources.nodes.elastic else alive
        for index in chosen:
            self.slots[index].busy = True
        return chosen

    def address(self, node: int) -> str:
        return self.slots[node].host

    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Popen[bytes]:
        """Start the agent of `spec` as a step with one task on a node; srun forwards SIGUSR2 to it."""
        command, srun_options = wrap([*IGNORE_STOPS, *spec.command()], self.profile, self.run)
        return self.open([*self.srun(node), *srun_options, *command], log)

    def start_group_server(self, spec: GroupServerSpec, log: Path) -> Popen[bytes]:
        """Start the group server as a local process. Slurm would end a step of its own before the agents have left."""
        command, srun_options = wrap(spec.command(), self.profile, self.run)
        if srun_options:  # pyxis containers can only be started by srun
            return self.open([*self.srun(0), *srun_options, *command], log)
        return self.open(command, log)

    def open(self, command: list[str], log: Path) -> Popen[bytes]:
        """Start a local process with the environment of an agent; append its output to `log`."""
        values = {**plain_environment(), **self._environment()}
        with log.open("ab") as stream, stop_signals_blocked():  # a stop signal would kill srun while it starts
            return Popen(command, stdout=stream, stderr=stream, stdin=DEVNULL, env=values)

    def srun(self, node: int) -> list[str]:
        """Return the srun command of a step with one task on a node."""
        slot = self.slots[node]
        command = ["srun", f"--jobid={slot.job}", "--nodes=1", "--ntasks=1", f"--nodelist={slot.host}", "--overlap"]
        command += ["--kill-on-bad-exit=0", "--wait=0", "--mpi=none", "--cpu-bind=none", "--input=none", "--export=ALL"]
        if self.resources.cpus:
            command.append(f"--cpus-per-task={self.resources.cpus}")
        return [*command, "--no-kill"] if self.resources.replaces_nodes else command

    def _start_elsewhere(self, command: list[str], log: Path) -> Popen[bytes] | None:
        """Start a step on any node of this job except the first. Returns None if there is no such node."""
        first = self.slots[0].host
        others = [n for n, slot in self.slots.items() if slot.job == self.job and not slot.dead and slot.host != first]
        return self.open([*self.srun(others[0]), *command], log) if others else None

    def _environment(self) -> dict[str, str]:
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
        # GPUs can also come from the profile's gres; Slurm sets this variable in every job that has GPUs
        gpus = self.resources.gpus or int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
        values = agent_environment(self.run, self.resources, cpus=cpus, gpus=gpus, ray_token=self.ray_token)
        # in a container the home may be another one
        return values | ({FOLDER_VARIABLE: str(secrets_folder(self.run.record))} if self.run.record.get("secrets") else {})

    def end(self, process: Process) -> None:
        """Kill a step with its srun, or a local process, including all descendants."""
        if process.poll() is None and Path(str(process.args[0])).name == "srun":
            process.terminate()  # srun then ends the step
            with suppress(TimeoutExpired):
                process.wait(END_SECONDS)
        end(family(process.pid))
        process.wait()

    # --- losing, acquiring and releasing nodes

    def loss_reason(self, node: int, code: int) -> str:
        """Return why a node is lost whose agent ended with `code` and no report; empty if it is not lost.

        srun reports a node failure by its messages only; its exit code is 1.
        """
        last = (self._log_of(node).read_text(errors="replace").splitlines() or [""])[-3:] if self._log_of(node).exists() else []
        messages = [line.lower() for line in last if line.startswith("srun: ")]
        if any(JOB_ENDS in message for message in messages):
            if self.slots[node].job == self.job:
                self.stop_requested.set()  # the signal may be on its way, as Slurm sends it once this process listens
            return "Slurm ends its job"
        if any(failure in message for message in messages for failure in NODE_FAILURES):
            return "Slurm reports a node failure"
        if code < 0 or code > 128:
            return f"killed by signal {-code if code < 0 else code - 128}"
        try:
            state = self.slurm.node_state(self.slots[node].host)
        except BackendError:
            return ""
        return "" if state.startswith(UP_STATES) and not state.endswith("*") else f"Slurm reports state {state}"

    def host(self, node: int) -> str:
        return self.slots[node].host if node in self.slots else ""

    def machine_failed(self, node: int) -> bool:
        """Return True if Slurm reports the machine as down or failed, not merely as drained, reserved or in use."""
        try:
            state = self.slurm.node_state(self.slots[node].host)
        except BackendError:
            return False
        return state.startswith(("down", "fail")) or state.endswith("*")

    def _log_of(self, node: int) -> Path:
        return self.run.log_dir(self.run.attempts()[-1]) / f"node-{node}.log"

    def mark_lost(self, node: int) -> None:
        slot = self.slots[node]
        slot.dead, slot.busy, slot.lost_at = True, False, time.monotonic()
        self._next_request = time.monotonic() + (0 if slot.job == self.job else RETRY_SECONDS)
        if slot.job != self.job:
            self._cancel(slot.job)

    def release(self, node: int) -> None:
        """Return a node to Slurm permanently: shrink the job, or cancel the small job that holds the node."""
        slot = self.slots[node]
        if slot.job != self.job:
            self.mark_lost(node)
            return
        slot.dead, slot.busy = True, False
        remaining_hosts = ",".join(s.host for s in self.slots.values() if s.job == self.job and not s.dead)
        try:
            self.slurm.update(self.job, NodeList=remaining_hosts)
        except BackendError as error:
            log.warning("node %s is no longer used but could not be returned to Slurm: %s", slot.host, error)
        for path in Path().glob(f"slurm_job_{self.job}_resize.*"):
            path.unlink()

    def acquire(self, wanted: int) -> list[int]:
        """Return nodes that can join now, and request the missing ones from Slurm.

        Slurm cannot add nodes to a running job, so that each additional node is held by a small job of its own.
        """
        self.watchdog.maintain()
        free = [index for index, slot in self.slots.items() if not slot.dead and not slot.busy][: max(wanted, 0)]
        missing = max(wanted, 0) - len(free)
        if time.monotonic() >= self._next_poll and (missing or self.extra_node_jobs):
            self._next_poll = time.monotonic() + POLL_SECONDS
            free += self._adopt_extra_nodes(missing)
            self._request_nodes(max(wanted, 0) - len(free) - len(self.extra_node_jobs))
        for index in free:
            self.slots[index].busy = True
        return free

    def _adopt_extra_nodes(self, missing: int) -> list[int]:
        """Add slots for additional nodes whose jobs run by now; cancel the jobs that are no longer needed."""
        if not self.extra_node_jobs:
            return []
        try:
            # query by name: an id that Slurm has forgotten would be an error, or belong to another job
            jobs = {job.id: job for job in self.slurm.jobs_named(extra_node_name(self.job))}
        except BackendError as error:
            log.warning("cannot query the jobs of additional nodes: %s", error)
            return []
        new: list[int] = []
        for job_id in sorted(self.extra_node_jobs):
            job = jobs.get(job_id)
            if job is not None and job.state == "RUNNING" and len(new) < missing:
                self.extra_node_jobs.discard(job_id)
                if job.nodes in self._hosts():  # two of these jobs can share a node
                    self._cancel(job_id)
                    continue
                index = max(self.slots) + 1
                self.slots[index] = Slot(host=job.nodes, job=job_id)
                new.append(index)
            elif job is None or job.state not in {"PENDING", "CONFIGURING", "RUNNING"}:
                self.extra_node_jobs.discard(job_id)
                self._next_request = time.monotonic() + RETRY_SECONDS
        for _ in range(len(self.extra_node_jobs) - (missing - len(new))):
            self._cancel(self.extra_node_jobs.pop())
        return new

    def _request_nodes(self, count: int) -> None:
        if count <= 0 or time.monotonic() < self._next_request:
            return
        try:
            left = ends_at(self.slurm.job_details(self.job)) - time.time()
            minutes = int(left // 60) if left < FOREVER else None
            if minutes == 0:
                return  # too little time left for a new group
            script = render_extra_node(self.run, self.resources, self.profile, self.job, minutes)
            script_path = self.run.attempt_dir(self.run.attempts()[-1]) / "companion.sbatch"
            script_path.write_text(script)
            since = time.monotonic() - AVOID_SECONDS if self.resources.spare_nodes else math.inf  # it can wait for others
            avoided = {slot.host for slot in self.slots.values() if slot.lost_at > since}
            excluded = ",".join(sorted({*self._hosts(), *avoided, *filter(None, [self.profile.exclude])}))
            self.extra_node_jobs |= {self.slurm.sbatch(script_path, f"--exclude={excluded}") for _ in range(count)}
            self.run.event("nodes_asked_for", count=count, jobs=sorted(self.extra_node_jobs))
        except BackendError as error:
            log.warning("cannot request %d more nodes: %s", count, error)
            self._next_request = time.monotonic() + RETRY_SECONDS

    def _hosts(self) -> set[str]:
        """Return the hosts in use. On a cluster with shared nodes Slurm could assign one of them a second time."""
        return {slot.host for slot in self.slots.values() if not slot.dead}

    def _cancel(self, job: str) -> None:
        try:
            self.slurm.cancel(job)
        except BackendError as error:
            log.warning("job %s is no longer needed but could not be cancelled: %s", job, error)

    # --- stop requests

    def stop_reason(self) -> str:
        if self.stop_requested.is_set() and not self._notice:
            self._notice = self.query_stop_reason() or "signal"
        return self._notice

    def query_stop_reason(self) -> str:
        try:
            return slurm_stop_reason(self.slurm.job_details(self.job), self.resources.grace_seconds)
        except BackendError as error:
            log.warning("cannot ask Slurm for the reason of the stop: %s", error)
            return "signal"

    def can_retry(self) -> bool:
        """Return True if the next attempt may start on these nodes: none is reclaimed, and there are enough of them."""
        alive = sum(not slot.dead for slot in self.slots.values())
        needed = self.resources.nodes.least
        if self.stop_requested.is_set() or alive < needed or self.slots[0].dead:
            return False
        if why := self.query_stop_reason():
            log.info("Slurm reclaims the nodes: %s", why)
            return False
        return True

    def close(self) -> None:
        """Stop the watchdog, and cancel the jobs that hold or wait for additional nodes."""
        self.watchdog.close()
        held = {slot.job for slot in self.slots.values() if slot.job != self.job and not slot.dead}
        if held or self.extra_node_jobs:
            self._cancel(f"--name={extra_node_name(self.job)}")
