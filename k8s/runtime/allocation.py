"""The pods of a run's Job as an allocation: every connected pod is a node, and that of an attempt's first leader is node 0."""

import itertools
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ropewalk.cluster.backends.submission import submission_details
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import EXIT_REQUEUE
from ropewalk.cluster.process.forking import Process
from ropewalk.cluster.process.signals import SignalFlag
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, GroupServerSpec
from ropewalk.k8s.api.client import ApiError, ForbiddenError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.runtime.job_outcome import query_stop_reason
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.membership import LOST_CODE, Member, Membership, RemoteAgent
from ropewalk.k8s.runtime.pod_replacement import PodReplacer
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

MOST_STARTED = 1_000_000  # processes that one coordinator starts


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
        # of agents and group servers, above those that earlier coordinators have given
        self._numbers = itertools.count(term.number * MOST_STARTED)
        self._index_of_node_0 = term.index  # in the present attempt
        self._group_server: RemoteAgent | None = None
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
            if count >= wanted or (count and self.survivors):
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

    def take_over(self, attempt: int, survivors: int) -> None:
        """Go on with the agents of an attempt whose leader has died; their pods join as they find this one."""
        self.survivors = survivors
        self._index_of_node_0 = int(self.run.attempt_details(attempt)["index_of_node_0"])

    def wanted(self) -> int:
        return self.resources.wanted_nodes(self.run.wanted_nodes)

    def initial_nodes(self) -> list[int]:
        """Return the nodes of all connected pods; at most as many as the user set with `scale`."""
        self._notice = ""
        ready = {self.node_of(member.pod.index): member for member in self._ready()}
        chosen = [node for node, member in ready.items() if self._goes_on(member)] or sorted(ready)[: self.wanted()]
        self.slots = {node: ready[node] for node in chosen}
        self.busy = set(self.slots)
        return sorted(self.slots)

    def node_of(self, index: int) -> int:
        """Return the node number of the pod with an index: its index, with 0 and that of the attempt's first leader swapped."""
        return {self._index_of_node_0: 0, 0: self._index_of_node_0}.get(index, index)

    def _ready(self) -> list[Member]:
        """Return one member per index that is idle or goes on; empty if the leader's own pod is neither."""
        ready = {member.pod.index: member for member in self.members.present() if member.idle or self._goes_on(member)}
        return list(ready.values()) if self.term.index in ready else []

    def _goes_on(self, member: Member) -> bool:
        return member.runs_agent_of(self.members.attempt)

    def running_agent(self, node: int) -> Process | None:
        return self.slots[node].agent if self._goes_on(self.slots[node]) else None

    def address(self, node: int) -> str:
        """Return the address of the node's pod. A host name could mean a dead pod or its successor."""
        return self.slots[node].pod.address

    def host(self, node: int) -> str:
        return self.slots[node].pod.machine if node in self.slots else ""

    def start(self, node: int, spec: AgentSpec | GroupServerSpec, log: Path) -> Process:
        """Let the node's pod start an agent; the pod builds the command line and chooses the log file itself."""
        assert isinstance(spec, AgentSpec)
        self.members.attempt = spec.attempt
        return self.slots[node].start(next(self._numbers), spec)

    def server_host(self) -> str:
        return self.term.address

    def start_group_server(self, spec: GroupServerSpec, log: Path) -> Process:
        """Start the group server in the leader's pod."""
        leader = next(member for member in self.members.present() if member.pod.uid == self.term.uid)
        self._group_server = leader.start_group_server(next(self._numbers), replace(spec, term=self.term.number))
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
        others = [member for member in self.members.present() if self.node_of(member.pod.index) not in self.busy]
        idle = [member for member in others if member.idle]
        for member in [*filter(self._goes_on, others), *idle[: max(wanted, 0)]]:
            node = self.node_of(member.pod.index)
            self.slots[node] = member
            self.busy.add(node)
            chosen.append(node)
        return chosen

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
        """Return True if another Job runs the run by now, after `confirm`; required before an attempt is opened."""
        self.confirm()
        if (name := submission_details(self.run).get("name")) != self.api.job_name:
            self._notice = f"Job {name} runs the run by now: it was submitted again"
            log.error("%s", self._notice)
            self.stop_requested.set()
        return self.stop_requested.is_set()

    def confirm(self) -> None:
        """End this process if another pod leads the run: the agents go on under that one."""
        self._next_term_check = time.monotonic() + LEADER_POLL_SECONDS
        if (later := self.terms.after(self.term)) is not None:
            log.error("pod %s leads the run by now: this pod lost leadership because it was presumed dead", later.pod)
            logging.shutdown()
            os._exit(EXIT_REQUEUE)

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
        self.survivors = self.members.attempt = 0
        return self.await_nodes() and not self.run.cancel_requested and not self.is_superseded()

    def _log_wait(self, message: str) -> None:
        if time.monotonic() >= self._next_message:
            self._next_message = time.monotonic() + LOG_REPEAT_SECONDS
            log.info("waiting for pods: %s", message)
