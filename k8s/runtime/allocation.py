"""The pods of a run's Job as an allocation: every connected pod is a node, and that of the coordinator is node 0."""

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
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, GroupServerSpec
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
    LEADER_POLL_SECONDS,
    LOG_REPEAT_SECONDS,
    RESIZE_RETRY_SECONDS,
    SETTLE_SECONDS,
    SUCCEED_SECONDS,
)

log = logging.getLogger(__name__)


class PodAllocation(Allocation):
    """The pods connected to the coordinator, which runs in the leader's pod."""

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
        self.stop_requested = SignalFlag()  # this pod has to stop
        self.slots: dict[int, Member] = {}  # by node; includes lost members until the attempt has marked them
        self.busy: set[int] = set()
        self._num_started = 0  # agents and stores
        self._group_server: RemoteAgent | None = None
        self._store_port = ReservedPort()
        self._notice = ""
        self._requested_pods: int | None = None
        self._next_term_check = self._next_message = self._next_request = 0.0

    # --- the nodes of an attempt

    def await_nodes(self) -> bool:
        """Wait for enough pods. Returns False if this pod has to stop, and True early if the run is to be cancelled."""
        wanted = self.wanted()
        enough_since: float | None = None
        while not self.must_stop():
            if self.run.cancel_requested:
                return True
            self._maintain()
            count = len(self._ready())
            if count >= wanted:
                return True
            if count < self.resources.nodes.least:
                enough_since = None
                self._log_wait(f"{count} of {wanted} pods are connected")
            else:
                enough_since = enough_since or time.monotonic()
                if time.monotonic() - enough_since > (SETTLE_SECONDS if self.term.number == 1 else SUCCEED_SECONDS):
                    return True
            time.sleep(ALLOCATION_POLL_SECONDS)
        return False

    def wanted(self) -> int:
        return self.resources.wanted_nodes(self.run.wanted_nodes)

    def initial_nodes(self) -> list[int]:
        """Return the nodes of all connected pods; at most as many as the user set with `scale`."""
        self._notice = ""
        self.slots = {self.node_of(member.pod): member for member in self._ready()}
        for node in sorted(self.slots)[self.wanted() :]:
            del self.slots[node]
        self.busy = set(self.slots)
        return sorted(self.slots)

    def node_of(self, pod: Pod) -> int:
        """Return the node number of a pod: its index, with those of the leader's pod and of index 0 swapped."""
        return {self.term.index: 0, 0: self.term.index}.get(pod.index, pod.index)

    def _ready(self) -> list[Member]:
        """Return one idle member per index; empty if the leader's own pod is not idle."""
        idle = {member.pod.index: member for member in self.members.present() if member.idle}
        return list(idle.values()) if self.term.index in idle else []

    def address(self, node: int) -> str:
        """Return the address of the node's pod. A host name could mean a dead pod or its successor."""
        return self.slots[node].pod.address

    def host(self, node: int) -> str:
        return self.slots[node].pod.machine if node in self.slots else ""

    def free_port(self) -> int:
        return self._store_port.take(self.term.address)

    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Process:
        """Let the node's pod start an agent; the pod builds the command line and chooses the log file itself."""
        assert isinstance(spec, AgentSpec)
        self._num_started += 1
        return self.slots[node].start(self._num_started, spec)

    def start_group_server(self, spec: GroupServerSpec, log: Path) -> Process:
        self._num_started += 1
        self._group_server = self.slots[0].start_group_server(self._num_started, spec)
        return self._group_server

    def end(self, process: Process) -> None:
        assert isinstance(process, RemoteAgent)
        if process.poll() is None:
            process.terminate()
            if process is self._group_server:
                return
            with suppress(subprocess.TimeoutExpired):
                process.wait(AGENT_END_SECONDS)
        if process.poll() is None:
            log.error("%s could not be killed within %.0f s; it is locked out and cannot write", process.args, AGENT_END_SECONDS)
            process.returncode = LOST_CODE

    # --- losing, acquiring and releasing nodes

    def loss_reason(self, node: int, code: int) -> str:
        """Return why a node is lost: its pod is gone, or a signal ended its agent; else an empty string."""
        member = self.slots[node]
        if member.gone:
            return f"pod {member.pod.name} {'does not answer' if member.silent else 'is gone'}"
        return f"killed by signal {-code}" if code < 0 else ""

    def mark_lost(self, node: int) -> None:
        """Stop using a lost or leaving node."""
        self.busy.discard(node)

    def clean_up(self, node: int) -> None:
        """Do nothing more: the pod itself ends the processes that its agent leaves behind."""
        self.busy.discard(node)

    def release(self, node: int) -> None:
        """Stop using a node because the user wants fewer; Kubernetes removes the pods with the highest indexes."""
        self.busy.discard(node)
        self._maintain()

    def acquire(self, wanted: int) -> list[int]:
        self._maintain()
        chosen: list[int] = []
        for member in self._idle_others()[: max(wanted, 0)]:
            node = self.node_of(member.pod)
            self.slots[node] = member
            self.busy.add(node)
            chosen.append(node)
        return chosen

    def _idle_others(self) -> list[Member]:
        return [m for m in self.members.present() if m.idle and self.node_of(m.pod) not in self.busy]

    def _maintain(self) -> None:
        """Let lost pods be replaced, and request the number of pods that the user wants."""
        for member in self.members.departed():
            self.replacer.replace(member, self.resources.grace_seconds)
        for member in self.members.present():
            if not member.leaving and not self.replacer.try_return(member.pod.uid):
                member.leaving = True  # declared dead before it reconnected; it will be deleted
        if self.resources.nodes.elastic and self.wanted() != self._requested_pods and time.monotonic() >= self._next_request:
            self._request_pods(self.wanted())

    def _request_pods(self, count: int) -> None:
        """Resize the Job. Kueue forbids that if it has admitted only a part of the Job; surplus pods then stay idle."""
        self._requested_pods = count
        try:
            job = self.api.job()
            if job is not None and job["spec"]["completions"] != count:
                self.api.patch_job({"spec": {"completions": count, "parallelism": count}})
                self.run.event("pods_asked_for", count=count)
        except ApiError as error:
            log.warning("cannot resize the Job to %d pods: %s", count, error)
            if not isinstance(error, ForbiddenError):
                self._requested_pods, self._next_request = None, time.monotonic() + RESIZE_RETRY_SECONDS

    # --- stop requests

    def must_stop(self) -> bool:
        """Return True if this pod has to stop, or if another pod leads the run by now."""
        if self.stop_requested.is_set():
            return True
        if time.monotonic() < self._next_term_check:
            return False
        return self.is_superseded()

    def is_superseded(self) -> bool:
        """Check whether another pod leads the run by now; required before an attempt is opened."""
        self._next_term_check = time.monotonic() + LEADER_POLL_SECONDS
        if why := self.terms.end_of(self.term, self.api.job_name):
            self._leave(why)
        return self.stop_requested.is_set()

    def _leave(self, why: str) -> None:
        log.error("%s", why)
        self._notice = why
        self.stop_requested.set()

    def stop_reason(self) -> str:
        """Return why the whole run has to stop: this pod, or any pod if all of them are needed, is about to be deleted."""
        if self._notice:
            return self._notice
        leaving = self._leaving()
        for member in leaving:
            self.replacer.replace(member, self.resources.grace_seconds)
        if self.must_stop():
            self._notice = self._notice or self.query_stop_reason()
        elif leaving and (not self.resources.replaces_nodes or len(leaving) == len(self.busy)):
            self._notice = self.query_stop_reason(leaving)
        return self._notice

    def _leaving(self) -> list[Member]:
        return [member for node, member in self.slots.items() if node in self.busy and member.leaving]

    def query_stop_reason(self, leaving: Sequence[Member] = ()) -> str:
        """Ask Kubernetes why a leaving pod has to stop; without one, why this pod has to."""
        pods = [member.pod.name for member in leaving] or [member.pod.name for member in self.slots.values() if member.leaving]
        return query_stop_reason(self.api, self.run, (pods or [self.term.pod])[0])

    def can_retry(self) -> bool:
        """Return True if the next attempt may start here; waits until there are enough pods."""
        return self.await_nodes() and not self.run.cancel_requested and not self.is_superseded()

    def _log_wait(self, message: str) -> None:
        if time.monotonic() >= self._next_message:
            self._next_message = time.monotonic() + LOG_REPEAT_SECONDS
            log.info("waiting for pods: %s", message)
