"""The pods of a run's Job as an allocation. A node is a pod that is connected; that of the coordinator is node 0."""

import logging
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.config import Resources
from ropewalk.cluster.process.forking import Process
from ropewalk.cluster.process.ports import ReservedPort
from ropewalk.cluster.process.signals import SignalFlag
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, StoreSpec
from ropewalk.k8s.api.client import ApiError, ForbiddenError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.runtime.job_outcome import query_stop_reason
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.membership import LOST_CODE, Member, Membership, RemoteAgent
from ropewalk.k8s.runtime.pod_replacement import PodReplacer
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.timings import (
    AGENT_END_SECONDS,
    ALLOCATION_POLL_SECONDS,
    LEADER_LOOK_SECONDS,
    LOG_REPEAT_SECONDS,
    RESIZE_RETRY_SECONDS,
    SETTLE_SECONDS,
)

log = logging.getLogger(__name__)


class PodAllocation(Allocation):
    """The connected pods, as the coordinator in the pod that leads the run sees them."""

    name = "k8s"

    def __init__(
        self,
        run: RunDir,
        resources: Resources,
        members: Membership,
        api: InClusterApi,
        term: LeaderTerm,
        *,
        terms: LeaderTerms,
        replacer: PodReplacer,
    ) -> None:
        self.run, self.resources, self.members, self.api, self.term = run, resources, members, api, term
        self.terms, self.replacer = terms, replacer
        self.asked_to_stop = SignalFlag()  # this pod has to go
        self.slots: dict[int, Member] = {}  # by node; those of members that are gone until the attempt has marked them lost
        self.busy: set[int] = set()
        self._agents = 0  # started so far, the stores included
        self._store: RemoteAgent | None = None
        self._store_port = ReservedPort()
        self._notice = ""
        self._asked_for: int | None = None  # pods, of Kubernetes
        self._next_term_look = self._next_message = self._next_request = 0.0

    # --- the nodes of an attempt

    def await_nodes(self) -> bool:
        """Wait until there are enough pods; False: this pod has to go. A run that is to be cancelled waits for none."""
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
                self._log_wait(f"{count} of {wanted} pods are here")
            else:
                enough_since = enough_since or time.monotonic()
                if time.monotonic() - enough_since > SETTLE_SECONDS:
                    return True
            time.sleep(ALLOCATION_POLL_SECONDS)
        return False

    def wanted(self) -> int:
        """The number of nodes that the run wants now."""
        nodes = self.resources.nodes
        return max(nodes.least, min(self.run.wanted_nodes or nodes.most, nodes.most))

    def initial_nodes(self) -> list[int]:
        """Return the nodes whose pods are connected, or as many of them as the user wants."""
        self._notice = ""
        self.slots = {self.node_of(member.pod): member for member in self._ready()}
        for node in sorted(self.slots)[self.wanted() :]:
            del self.slots[node]
        self.busy = set(self.slots)
        return sorted(self.slots)

    def node_of(self, pod: Pod) -> int:
        """The number of a pod's node: the pod's index, except that this pod's and 0 are exchanged."""
        return {self.term.index: 0, 0: self.term.index}.get(pod.index, pod.index)

    def _ready(self) -> list[Member]:
        """One member per index that can start an agent, if this pod can."""
        found = {member.pod.index: member for member in self.members.present() if member.idle}
        return list(found.values()) if self.term.index in found else []

    def address(self, node: int) -> str:
        """The address of the node's pod: a name may mean a dead pod and its successor at the same time."""
        return self.slots[node].pod.address

    def free_port(self) -> int:
        """Reserve a port of this pod."""
        return self._store_port.take(self.term.address)

    def start(self, node: int, spec: AgentSpec | StoreSpec, log: Path) -> Process:
        """Have the node's pod start an agent; the pod renders the command line, and finds the log by the agent's node."""
        assert isinstance(spec, AgentSpec)
        self._agents += 1
        return self.slots[node].start(self._agents, spec)

    def start_store(self, spec: StoreSpec, log: Path) -> Process:
        """Have this pod start the rendezvous store."""
        self._agents += 1
        self._store = self.slots[0].start_store(self._agents, spec)
        return self._store

    def end(self, process: Process) -> None:
        """Have a process's pod kill it, and its descendants."""
        assert isinstance(process, RemoteAgent)
        if process.poll() is None:
            process.terminate()
            if process is self._store:
                return
            with suppress(subprocess.TimeoutExpired):
                process.wait(AGENT_END_SECONDS)
        if process.poll() is None:
            log.error(
                "%s could not be ended in %.0f s; its attempt's fence keeps it from writing", process.args, AGENT_END_SECONDS
            )
            process.returncode = LOST_CODE

    # --- losing, getting and giving back

    def loss_reason(self, node: int, code: int) -> str:
        """Say why a node is lost: its pod is gone, or a signal ended its agent."""
        member = self.slots[node]
        if member.gone:
            return f"pod {member.pod.name} {'does not answer' if member.silent else 'is gone'}"
        return f"killed by signal {-code}" if code < 0 else ""

    def mark_lost(self, node: int) -> None:
        """Stop using a node that died or has to go, and end ranks of others that would wait for a dead peer for many minutes."""
        member = self.slots[node]
        self.busy.discard(node)
        if member.gone and not member.leaving:
            for other in [other for other in self.busy if not self.slots[other].gone]:
                agent = self.slots[other].agent
                if agent is not None:
                    self.slots[other].send({"say": "regroup", "agent": agent.number})

    def clean_up(self, node: int) -> None:
        """Nothing is left to do: a pod itself ends what its agent leaves behind."""
        self.busy.discard(node)

    def release(self, node: int) -> None:
        """Give a node back, since the user wants fewer: Kubernetes removes the pods of the highest indexes."""
        self.busy.discard(node)
        self._tend()

    def acquire(self, wanted: int) -> list[int]:
        """Return nodes of pods that have come and are not used."""
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
        """Have pods that have gone replaced, and ask Kubernetes for as many pods as the user wants."""
        for member in self.members.departed():
            self.replacer.replace(member, self.resources.grace_seconds)
        for member in self.members.present():
            if not member.leaving and not self.replacer.returned(member.pod.uid):
                member.leaving = True  # it was away for too long, and will be told
        if self.resources.nodes.elastic and self.wanted() != self._asked_for and time.monotonic() >= self._next_request:
            self._ask_for(self.wanted())

    def _ask_for(self, count: int) -> None:
        """Resize the Job. Kueue forbids it where it has admitted a part of the Job: surplus pods then stay, idle."""
        self._asked_for = count
        try:
            job = self.api.job()
            if job is not None and job["spec"]["completions"] != count:
                self.api.patch_job({"spec": {"completions": count, "parallelism": count}})
                self.run.event("pods_asked_for", count=count)
        except ApiError as error:
            log.warning("cannot resize the Job to %d pods: %s", count, error)
            if not isinstance(error, ForbiddenError):
                self._asked_for, self._next_request = None, time.monotonic() + RESIZE_RETRY_SECONDS

    # --- whether we may stay

    def must_go(self) -> bool:
        """Whether this pod has to leave, or another leads the run by now."""
        if self.asked_to_stop.is_set():
            return True
        if time.monotonic() < self._next_term_look:
            return False
        return self.is_superseded()

    def is_superseded(self) -> bool:
        """Look whether another pod leads the run by now: to be asked before an attempt is opened."""
        self._next_term_look = time.monotonic() + LEADER_LOOK_SECONDS
        if why := self.terms.end_of(self.term, self.api.job_name):
            self._leave(why)
        return self.asked_to_stop.is_set()

    def _leave(self, why: str) -> None:
        log.error("%s", why)
        self._notice = why
        self.asked_to_stop.set()

    def stop_reason(self) -> str:
        """Say why the whole run has to stop: this pod, or any of the pods where all are needed, has to go."""
        if self._notice:
            return self._notice
        leaving = self._leaving()
        for member in leaving:
            self.replacer.replace(member, self.resources.grace_seconds)
        if self.must_go():
            self._notice = self._notice or self.query_stop_reason()
        elif leaving and (not self.resources.nodes.elastic or len(leaving) == len(self.busy)):
            self._notice = self.query_stop_reason(leaving)
        return self._notice

    def _leaving(self) -> list[Member]:
        return [member for node, member in self.slots.items() if node in self.busy and member.leaving]

    def query_stop_reason(self, leaving: Sequence[Member] = ()) -> str:
        """Ask Kubernetes why a pod has to go: one of those that leave, else this one."""
        pods = [member.pod.name for member in leaving] or [member.pod.name for member in self.slots.values() if member.leaving]
        return query_stop_reason(self.api, self.run, (pods or [self.term.pod])[0])

    def can_retry(self) -> bool:
        """Whether the next attempt may start here, as soon as there are pods enough."""
        return self.await_nodes() and not self.run.cancel_requested and not self.is_superseded()

    def _log_wait(self, words: str) -> None:
        if time.monotonic() >= self._next_message:
            self._next_message = time.monotonic() + LOG_REPEAT_SECONDS
            log.info("waiting for pods: %s", words)
