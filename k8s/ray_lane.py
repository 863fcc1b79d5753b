"""The head of a RayJob as a lane of one node, whose agent joins the Ray that is there over all of the RayJob's pods."""

import logging
import os
import subprocess
import time
from pathlib import Path

from cluster.config import Resources
from cluster.engines.ports import NODE_CPUS_VARIABLE, free_port
from cluster.engines.ray import JOIN_VARIABLE, count_nodes
from cluster.gpus import NODE_GPUS_VARIABLE
from cluster.process.forking import Process
from cluster.process.kill import end, family, processes_of
from cluster.process.scratch import make_scratch, remove_scratch
from cluster.process.signals import Flag, deaf_children
from cluster.run.directory import RunDir
from cluster.spec import StopReason
from k8s.api.in_cluster import Inside
from k8s.ray_pod import PodRay
from k8s.rayjob import GCS_PORT
from k8s.runtime.job_outcome import ask_why
from k8s.runtime.leader_terms import Claim, displaced

log = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0  # how long a run that may have fewer nodes waits for one more
LOOK_SECONDS = 0.5
CLAIM_LOOK_SECONDS = 2.0
SAY_SECONDS = 30.0


class HeadLane:
    """Built by the head's own process."""

    name = "k8s"

    def __init__(self, run: RunDir, resources: Resources, ray: PodRay, api: Inside, claim: Claim) -> None:
        self.run, self.resources, self.ray, self.api, self.claim = run, resources, ray, api, claim
        self.asked_to_stop = Flag()  # this pod has to go
        self.disk = make_scratch("n")  # what is left of an attempt is known by it
        self._limit: float | None = None
        self._notice = ""
        self._next_claim_look = 0.0

    # --- the node of an attempt

    def await_nodes(self) -> bool:
        """Wait until Ray has its nodes; False: this pod has to go. A run that is to be cancelled waits for nobody."""
        address, nodes = f"{self.claim.address}:{GCS_PORT}", self.resources.nodes
        enough_since: float | None = None
        next_word = time.monotonic() + SAY_SECONDS
        while not self.must_go():
            count = count_nodes(address)
            if count >= nodes.most or self.run.cancel_requested:
                return True
            now = time.monotonic()
            enough_since = (enough_since or now) if count >= nodes.least else None
            if enough_since is not None and now - enough_since > SETTLE_SECONDS:
                return True
            if now > next_word:
                next_word = now + SAY_SECONDS
                log.info("waiting for pods: Ray has %d of %d nodes", count, nodes.most)
            time.sleep(LOOK_SECONDS)
        return False

    def nodes(self) -> list[int]:
        """This one; the attempt's time begins."""
        minutes = self.resources.time_limit_minutes
        self._limit = time.monotonic() + minutes * 60 if minutes else None
        self._notice = ""
        return [0]

    def address(self, node: int) -> str:
        """The pod's own."""
        return self.claim.address

    def free_port(self) -> int:
        """Of this pod."""
        return free_port(self.claim.address)

    def start(self, node: int, command: list[str], log: Path) -> Process:
        """Start the agent, in a session of its own."""
        joined = {JOIN_VARIABLE: f"{self.claim.address}:{GCS_PORT}", "TMPDIR": str(self.disk)}
        share = {NODE_CPUS_VARIABLE: str(self.resources.cpus or self.resources.local_world_size)}
        share[NODE_GPUS_VARIABLE] = str(self.resources.gpus)
        with log.open("ab") as stream, deaf_children():
            return subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **joined, **share},
                start_new_session=True,
            )

    def serve(self, command: list[str], log: Path) -> Process:
        """Beside this process."""
        return self.start(0, command, log)

    def end(self, process: Process) -> None:
        """Kill it, with all that it has started."""
        end(family(process.pid))
        process.wait()

    # --- losing it

    def lost(self, node: int, code: int) -> str:
        """The signal that ended the agent."""
        return f"killed by signal {-code}" if code < 0 else ""

    def clean(self, node: int) -> None:
        """End what the agent has left behind."""
        end(processes_of(self.disk))

    def bury(self, node: int) -> None:
        """The same."""
        self.clean(node)

    def offered(self, wanted: int) -> list[int]:
        """Ray itself takes in what pods come."""
        return []

    def release(self, node: int) -> None:
        """The only one is never given back."""

    # --- whether we may stay

    def must_go(self) -> bool:
        """This pod has to leave, its Ray has ended, or another carries the run by now."""
        if not self.ray.alive:
            self._leave("Ray has ended on the head")
        if not self.asked_to_stop.is_set() and time.monotonic() >= self._next_claim_look:
            self.superseded()
        return self.asked_to_stop.is_set()

    def superseded(self) -> bool:
        """Look whether another carries the run by now: to be asked before an attempt is opened."""
        self._next_claim_look = time.monotonic() + CLAIM_LOOK_SECONDS
        if why := displaced(self.run, self.claim, self.api.job_name):
            self._leave(why)
        return self.asked_to_stop.is_set()

    def _leave(self, why: str) -> None:
        if not self._notice:
            log.error("%s", why)
        self._notice = self._notice or why
        self.asked_to_stop.set()

    def notice(self) -> str:
        """Why the run has to stop: this pod has to go, or its time is up."""
        if not self._notice:
            if self._limit is not None and time.monotonic() > self._limit - self.resources.grace_seconds:
                self._notice = StopReason.TIME_LIMIT
            elif self.must_go():
                self._notice = self._notice or self.explain()
        return self._notice

    def explain(self) -> str:
        """Ask Kubernetes why the pod has to go."""
        return ask_why(self.api, self.run, self.claim.pod)

    def keeps(self) -> bool:
        """Whether the next attempt may start here."""
        return self.await_nodes() and not self.run.cancel_requested and not self.superseded()

    def close(self) -> None:
        """Nothing of any attempt is left, nor of Ray."""
        self.clean(0)
        self.ray.end()
        remove_scratch(self.disk)
