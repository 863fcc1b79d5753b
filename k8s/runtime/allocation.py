"""The pods of a run's Job. A node is a pod that is connected; that of the conductor is node 0."""

import logging
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.config import Resources
from cluster.engines.ports import ReservedPort
from cluster.process.forking import Process
from cluster.process.signals import SignalFlag
from cluster.run.directory import RunDir
from cluster.supervise.allocation import Allocation
from k8s.api.client import ApiError, ForbiddenError
from k8s.api.in_cluster import InClusterApi
from k8s.runtime.job_outcome import ask_why
from k8s.runtime.leader_terms import Claim, displaced
from k8s.runtime.membership import LOST_CODE, Member, Members, RemoteAgent
from k8s.runtime.pod_replacement import Replacing
from k8s.runtime.pod_status import Pod

log = logging.getLogger(__name__)

SETTLE_SECONDS = 2.0  # how long an elastic run waits for one pod more, once it has enough
END_SECONDS = 10.0
LOOK_SECONDS = 0.1
CLAIM_LOOK_SECONDS = 2.0
ASK_AGAIN_SECONDS = 5.0  # after the API server was away
SAY_SECONDS = 30.0  # between two words about what is waited for


class PodAllocation(Allocation):
    """Built by the conductor, in whichever pod carries the run."""

    name = "k8s"

    def __init__(
        self, run: RunDir, resources: Resources, members: Members, api: InClusterApi, claim: Claim, *, replacing: Replacing
    ) -> None:
        self.run, self.resources, self.members, self.api, self.claim = run, resources, members, api, claim
        self.replacing = replacing
        self.asked_to_stop = SignalFlag()  # this pod has to go
        self.slots: dict[int, Member] = {}  # by node; those of members that are gone until the attempt has buried them
        self.busy: set[int] = set()
        self._agents = 0  # started so far, the stores included
        self._store: RemoteAgent | None = None
        self._store_port = ReservedPort()
        self._notice = ""
        self._asked_for: int | None = None  # pods, of Kubernetes
        self._next_claim_look = self._next_word = self._next_request = 0.0

    # --- the nodes of an attempt

    def await_nodes(self) -> bool:
        """Wait until there are enough pods; False: this one has to go. A run that is to be cancelled waits for nobody."""
        wanted = self.wanted()
        enough_since: float | None = None
        while not self.must_go():
            if self.run.cancel_requested:
                return True
            self._tend()
            count = len(self._ready())
            if count >= wanted:
                return True
            if count < self.resources.nodes.least:
                enough_since = None
                self._say(f"{count} of {wanted} pods are here")
            else:
                enough_since = enough_since or time.monotonic()
                if time.monotonic() - enough_since > SETTLE_SECONDS:
                    return True
            time.sleep(LOOK_SECONDS)
        return False

    def wanted(self) -> int:
        """How many nodes the run wants now."""
        nodes = self.resources.nodes
        return max(nodes.least, min(self.run.wanted_nodes or nodes.most, nodes.most))

    def initial_nodes(self) -> list[int]:
        """Those that are there, or as many as the user wants of them."""
        self._notice = ""
        self.slots = {self.node_of(member.pod): member for member in self._ready()}
        for node in sorted(self.slots)[self.wanted() :]:
            del self.slots[node]
        self.busy = set(self.slots)
        return sorted(self.slots)

    def node_of(self, pod: Pod) -> int:
        """A pod's index is its node's number, but that of the conductor and 0 are exchanged."""
        return {self.claim.index: 0, 0: self.claim.index}.get(pod.index, pod.index)

    def _ready(self) -> list[Member]:
        """One member an index that can start an agent, if ours can."""
        found = {member.pod.index: member for member in self.members.present() if member.idle}
        return list(found.values()) if self.claim.index in found else []

    def address(self, node: int) -> str:
        """The pod's own address: a name may mean a dead pod and its successor at the same time."""
        return self.slots[node].pod.address

    def free_port(self) -> int:
        """A port of this pod."""
        return self._store_port.take(self.claim.address)

    def start(self, node: int, command: list[str], log: Path) -> Process:
        """Have the node's pod start an agent: it is told the agent's place, and how to start one it knows itself."""
        self._agents += 1
        place = {"log": log.name, **_place(command)}
        return self.slots[node].start(self._agents, **place)

    def start_service(self, command: list[str], log: Path) -> Process:
        """Have this pod start the group's store."""
        self._agents += 1
        attempt = str(self.run.attempts()[-1])
        place = {"attempt": attempt, "address": _word(command, "--host"), "port": _word(command, "--port")}
        self._store = self.slots[0].start_store(self._agents, **place)
        return self._store

    def end(self, process: Process) -> None:
        """Kill it, with all that it has started: its pod does so."""
        assert isinstance(process, RemoteAgent)
        if process.poll() is None:
            process.terminate()
            if process is self._store:
                return
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        if process.poll() is None:
            log.error("%s could not be ended in %.0f s; its attempt's fence keeps it from writing", process.args, END_SECONDS)
            process.returncode = LOST_CODE

    # --- losing, getting and giving back

    def loss_reason(self, node: int, code: int) -> str:
        """Why the node is lost: its pod is gone, or a signal ended its agent."""
        member = self.slots[node]
        if member.gone:
            return f"pod {member.pod.name} {'does not answer' if member.silent else 'is gone'}"
        return f"killed by signal {-code}" if code < 0 else ""

    def mark_lost(self, node: int) -> None:
        """The node died, or has to go. Ranks that wait for a dead peer would do so for many minutes: end them."""
        member = self.slots[node]
        self.busy.discard(node)
        if member.gone and not member.leaving:
            for other in [other for other in self.busy if not self.slots[other].gone]:
                agent = self.slots[other].agent
                if agent is not None:
                    self.slots[other].send({"say": "regroup", "agent": agent.number})

    def clean_up(self, node: int) -> None:
        """A pod ends itself what its agent leaves behind."""
        self.busy.discard(node)

    def release(self, node: int) -> None:
        """The user wants fewer nodes: Kubernetes takes the pods of the highest indexes away."""
        self.busy.discard(node)
        self._tend()

    def acquire(self, wanted: int) -> list[int]:
        """Pods that have come, and that nobody uses."""
        self._tend()
        chosen: list[int] = []
        for member in self._idle_others()[: max(wanted, 0)]:
            node = self.node_of(member.pod)
            self.slots[node] = member
            self.busy.add(node)
            chosen.append(node)
        return chosen

    def _idle_others(self) -> list[Member]:
        return [m for m in self.members.present() if m.idle and self.node_of(m.pod) not in self.busy]

    def _tend(self) -> None:
        """Have those replaced that have gone, and ask Kubernetes for as many pods as the user wants."""
        for member in self.members.departed():
            self.replacing.see_to(member, self.resources.grace_seconds)
        for member in self.members.present():
            if not member.leaving and not self.replacing.returned(member.pod.uid):
                member.leaving = True  # it was away for too long, and will be told
        if self.resources.nodes.elastic and self.wanted() != self._asked_for and time.monotonic() >= self._next_request:
            self._ask_for(self.wanted())

    def _ask_for(self, count: int) -> None:
        """Resize the Job. Kueue forbids it where it has admitted a part of the Job: pods that are not wanted then stay, idle."""
        self._asked_for = count
        try:
            job = self.api.job()
            if job is not None and job["spec"]["completions"] != count:
                self.api.patch_job({"spec": {"completions": count, "parallelism": count}})
                self.run.event("pods_asked_for", count=count)
        except ApiError as error:
            log.warning("cannot ask Kubernetes for %d pods: %s", count, error)
            if not isinstance(error, ForbiddenError):
                self._asked_for, self._next_request = None, time.monotonic() + ASK_AGAIN_SECONDS

    # --- whether we may stay

    def must_go(self) -> bool:
        """This pod has to leave, or another carries the run by now."""
        if self.asked_to_stop.is_set():
            return True
        if time.monotonic() < self._next_claim_look:
            return False
        return self.superseded()

    def superseded(self) -> bool:
        """Look whether another carries the run by now: to be asked before an attempt is opened."""
        self._next_claim_look = time.monotonic() + CLAIM_LOOK_SECONDS
        if why := displaced(self.run, self.claim, self.api.job_name):
            self._leave(why)
        return self.asked_to_stop.is_set()

    def _leave(self, why: str) -> None:
        log.error("%s", why)
        self._notice = why
        self.asked_to_stop.set()

    def stop_reason(self) -> str:
        """Why the whole run has to stop: this pod or, where all are needed, any of them has to go."""
        if self._notice:
            return self._notice
        leaving = self._leaving()
        for member in leaving:
            self.replacing.see_to(member, self.resources.grace_seconds)
        if self.must_go():
            self._notice = self._notice or self.query_stop_reason()
        elif leaving and (not self.resources.nodes.elastic or len(leaving) == len(self.busy)):
            self._notice = self.query_stop_reason(leaving)
        return self._notice

    def _leaving(self) -> list[Member]:
        return [member for node, member in self.slots.items() if node in self.busy and member.leaving]

    def query_stop_reason(self, leaving: Sequence[Member] = ()) -> str:
        """Ask Kubernetes why a pod has to go."""
        pods = [member.pod.name for member in leaving] or [member.pod.name for member in self.slots.values() if member.leaving]
        return ask_why(self.api, self.run, (pods or [self.claim.pod])[0])

    def can_retry(self) -> bool:
        """Whether the next attempt may start here, as soon as there are pods enough."""
        return self.await_nodes() and not self.run.cancel_requested and not self.superseded()

    def _say(self, words: str) -> None:
        if time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + SAY_SECONDS
            log.info("waiting for pods: %s", words)


def _word(command: Sequence[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def _place(command: Sequence[str]) -> dict[str, Any]:
    """An agent's place in the attempt, of the command that would start it here."""
    assert command[1:3] == ["-m", "cluster.agent"], command
    words = command[4:]
    return {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
