"""Supervises a run in the pod that leads it; forked by ropewalk.k8s.runtime.pod_main.

Usage: python -m ropewalk.k8s.runtime.coordinator RUN_DIR --term N
Exit codes: 0 the run is over, 85 another pod may take over.
"""

import argparse
import logging
import socket
import sys
import time
from pathlib import Path

from ropewalk.cluster.errors import EXIT_DONE, EXIT_REQUEUE
from ropewalk.cluster.membership.server import RefusedError
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.signals import install_stop_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.node_ledger import Cause, record_failure
from ropewalk.cluster.supervise.supervisor import Supervisor, open_attempt
from ropewalk.cluster.supervise.takeover import surviving_nodes
from ropewalk.k8s.api.client import ApiError, ForbiddenError
from ropewalk.k8s.api.in_cluster import JOB_LABEL, InClusterApi
from ropewalk.k8s.runtime.allocation import PodAllocation
from ropewalk.k8s.runtime.job_outcome import pod_code, publish_outcome
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.membership import Membership
from ropewalk.k8s.runtime.pod_replacement import PodReplacer, release_stuck_pods
from ropewalk.k8s.runtime.pod_status import Pod, index_of, is_alive

log = logging.getLogger(__name__)

BACKLOG = 1024  # pods that connect before they are served
DIED = "its leader died: the pod that led the run was lost, or Kubernetes deleted it without notice"


def coordinate(run: RunDir, terms: LeaderTerms, term: LeaderTerm, listener: socket.socket, api: InClusterApi) -> int:
    """Lead the run until it is over or this pod has to stop; return the exit code."""
    resources, last = run.resources(), terms.before(term)
    attempt = max(run.attempts(), default=0)
    survivors = surviving_nodes(run, attempt, num_alive(api, terms, last)) if last is not None else 0
    key = terms.key_of(term)
    members = Membership(
        listener, key, lambda pod, caller: verify_pod(pod, caller, term, api), attempt=attempt if survivors else 0
    )
    replacer = PodReplacer(api, lambda machine: record_failure(run, max(run.attempts(), default=0), machine, Cause.DOWN))
    allocation = PodAllocation(run, resources, members, api, term, terms=terms, replacer=replacer)
    if last is not None and last.uid:
        replacer.declare_dead(last.pod, last.uid, resources.grace_seconds if terms.has_left(last) else 0.0)
    if last is not None and survivors:
        log.info("going on with %d nodes in attempt %d", survivors, attempt)
        allocation.take_over(attempt, survivors)
        if not terms.has_left(last):  # else its pod may live, with an agent
            lost = {"node": allocation.node_of(last.index), "address": last.address, "signal": f"pod {last.pod} is gone"}
            run.event("node_lost", **lost, attempt=attempt)
    install_stop_handler(allocation.stop_requested.set)
    code = EXIT_REQUEUE
    try:
        code = supervise(run, term, allocation)
    finally:
        replacer.close()
        outcome = run.last_outcome()
        if code == EXIT_DONE and outcome is not None:
            release_stuck_pods(api)
            publish_outcome(api, outcome)
            members.close({"say": "over", "code": pod_code(outcome)})
        else:
            members.close()
        terms.leave(term)
    return code


def num_alive(api: InClusterApi, terms: LeaderTerms, last: LeaderTerm) -> int:
    """Return the number of live pods without the last leader's, unless only its coordinator has died; 0 if that is unknown."""
    try:
        return sum(is_alive(pod) and (terms.has_left(last) or pod["metadata"]["uid"] != last.uid) for pod in api.pods())
    except ApiError as error:
        log.warning("the pods of the run are unknown, so a new attempt begins: %s", error)
        return 0


def supervise(run: RunDir, term: LeaderTerm, allocation: PodAllocation) -> int:
    """Run attempts one after the other, each as soon as there are enough pods; return the exit code."""
    while allocation.await_nodes() and not allocation.is_superseded():
        number = max(run.attempts()) if allocation.survivors else open_attempt(run, DIED)
        if number is None:
            return EXIT_DONE
        if not allocation.survivors:
            hosts = [member.pod.name for member in allocation.members.present()]
            run.describe_attempt(number, hosts=hosts, index_of_node_0=term.index, started=time.time())
        run.describe_attempt(number, carrier=term.pod)
        Supervisor(run, allocation, sys.executable).supervise(number)
        outcome = run.last_outcome()
        if outcome is not None and outcome.state.final:
            return EXIT_DONE
    return EXIT_REQUEUE


def verify_pod(pod: Pod, caller: str, term: LeaderTerm, api: InClusterApi) -> Pod:
    """Check that a caller with the run's key is a live pod of this Job and calls from its own address.

    Returns the pod with the index and address that Kubernetes reports. Raises RefusedError.
    """
    if pod.uid == term.uid:
        if caller != term.address:
            raise RefusedError(f"the address of the leader's pod is {term.address}")
        return Pod(name=term.pod, uid=term.uid, index=term.index, address=term.address, machine=pod.machine)
    try:
        reported = api.pod(pod.name)
    except ApiError as error:
        if not isinstance(error, ForbiddenError):
            raise RefusedError(str(error)) from None
        if caller != pod.address:
            raise RefusedError(f"it claims the address {pod.address}") from None
        log.warning("pod %s has the run's key, but cannot be verified as a pod of the run: %s", pod.name, error)
        return pod
    if reported is None or reported["metadata"]["uid"] != pod.uid:
        raise RefusedError("there is no such pod")
    if not is_alive(reported):
        raise RefusedError("Kubernetes does not report it as running (yet)")
    if reported["metadata"].get("labels", {}).get(JOB_LABEL) != api.job_name:
        raise RefusedError(f"it is not a pod of Job {api.job_name}")
    if caller not in {each["ip"] for each in reported["status"].get("podIPs", [])}:
        raise RefusedError(f"that pod has the address {reported['status'].get('podIP')}")
    machine = str(reported["spec"].get("nodeName", ""))
    return Pod(name=pod.name, uid=pod.uid, index=index_of(reported), address=caller, machine=machine)


def main() -> None:
    """Lead a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--term", type=int, required=True, help="number of the leader's term: the last one plus one")
    arguments = parser.parse_args()
    run, pod = RunDir(arguments.run_dir), Pod.this()
    configure_logging(f"coordinator {pod.name}")
    install_stop_handler(lambda: sys.exit(EXIT_REQUEUE))  # before the run is open there is nothing to save
    family = socket.AF_INET6 if ":" in pod.address else socket.AF_INET
    listener = socket.create_server((pod.address, 0), family=family, backlog=BACKLOG)
    port = int(listener.getsockname()[1])
    term = LeaderTerm(number=arguments.term, pod=pod.name, uid=pod.uid, index=pod.index, address=pod.address, port=port)
    terms = LeaderTerms(run)
    if not terms.take(term):
        sys.exit(EXIT_REQUEUE)
    log.info("term %d: this pod leads the run", term.number)
    sys.exit(coordinate(run, terms, term, listener, InClusterApi()))


if __name__ == "__main__":
    main()
