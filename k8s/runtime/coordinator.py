"""The process that carries a run, in whichever of its pods; forked by k8s.runtime.pod_main.

Usage: python -m k8s.runtime.coordinator RUN_DIR --claim N
Exit codes: 0 the run is over, 85 somebody else may carry it on.
"""

import argparse
import logging
import socket
import sys
import time
from pathlib import Path

from cluster.engines.entry import configure_logging
from cluster.errors import EXIT_DONE, EXIT_REQUEUE
from cluster.process.signals import install_stop_handler
from cluster.run.directory import RunDir
from cluster.supervise.supervisor import Supervisor, open_attempt
from k8s.api.client import ApiError, ForbiddenError
from k8s.api.in_cluster import InClusterApi
from k8s.runtime.allocation import PodAllocation
from k8s.runtime.job_outcome import pod_code, tell_the_end
from k8s.runtime.leader_terms import Claim, before, give_up, given_up, key_of, take
from k8s.runtime.membership import Members, RefusedError
from k8s.runtime.pod_replacement import Replacing, let_go
from k8s.runtime.pod_status import Pod, alive, index_of

log = logging.getLogger(__name__)

BACKLOG = 1024  # pods that call before they are answered
DIED = "its carrier died: the pod that carried it was lost, or Kubernetes took it away without notice"


def conduct(run: RunDir, claim: Claim, listener: socket.socket, api: InClusterApi) -> int:
    """Carry the run as long as this pod may; the exit code."""
    resources = run.resources()
    members = Members(listener, key_of(run, claim), lambda pod, caller: admitted(pod, caller, claim, api))
    replacing = Replacing(api)
    if (last := before(run, claim)) is not None and last.uid:
        replacing.declare_dead(last.pod, last.uid, resources.grace_seconds if given_up(run, last) else 0.0)
    lane = PodAllocation(run, resources, members, api, claim, replacing=replacing)
    install_stop_handler(lane.asked_to_stop.set)
    code = EXIT_REQUEUE
    try:
        code = carry(run, claim, lane)
    finally:
        replacing.close()
        outcome = run.last_outcome()
        if code == EXIT_DONE and outcome is not None:
            let_go(api)
            tell_the_end(api, outcome)
            members.close({"say": "over", "code": pod_code(outcome)})
        else:
            members.close()
        give_up(run, claim)
    return code


def carry(run: RunDir, claim: Claim, lane: PodAllocation) -> int:
    """One attempt after the other, as soon as there are pods enough for it."""
    while lane.await_nodes() and not lane.superseded():
        number = open_attempt(run, DIED)
        if number is None:
            return EXIT_DONE
        hosts = [member.pod.name for member in lane.members.present()]
        run.describe_attempt(number, hosts=hosts, carrier=claim.pod, started=time.time())
        Supervisor(run, lane, sys.executable).supervise(number)
        outcome = run.last_outcome()
        if outcome is not None and outcome.state.final:
            return EXIT_DONE
    return EXIT_REQUEUE


def admitted(pod: Pod, caller: str, claim: Claim, api: InClusterApi) -> Pod:
    """The pod that a caller is, which knows the run's key: a live one of this Job, that calls from its own address.

    Its index and its address are what Kubernetes says. Raises RefusedError.
    """
    if pod.uid == claim.uid:
        if caller != claim.address:
            raise RefusedError(f"whoever carries the run has the address {claim.address}")
        return Pod(name=claim.pod, uid=claim.uid, index=claim.index, address=claim.address)
    try:
        found = api.pod(pod.name)
    except ApiError as error:
        if not isinstance(error, ForbiddenError):
            raise RefusedError(str(error)) from None
        if caller != pod.address:
            raise RefusedError(f"it says that it has the address {pod.address}") from None
        log.warning("of pod %s it is known that it can read the run's directory, and no more: %s", pod.name, error)
        return pod
    if found is None or found["metadata"]["uid"] != pod.uid:
        raise RefusedError("there is no such pod")
    if not alive(found):
        raise RefusedError("Kubernetes does not say that it runs, or not yet")
    if found["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name") != api.job_name:
        raise RefusedError(f"it is no pod of Job {api.job_name}")
    if caller not in {each["ip"] for each in found["status"].get("podIPs", [])}:
        raise RefusedError(f"that pod has the address {found['status'].get('podIP')}")
    return Pod(name=pod.name, uid=pod.uid, index=index_of(found), address=caller)


def main() -> None:
    """Carry one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--claim", type=int, required=True, help="its number: one more than the last carrier's")
    arguments = parser.parse_args()
    run, pod = RunDir(arguments.run_dir), Pod.this()
    configure_logging(f"conductor {pod.name}")
    install_stop_handler(lambda: sys.exit(EXIT_REQUEUE))  # until the run is known a stop means: leave
    family = socket.AF_INET6 if ":" in pod.address else socket.AF_INET
    listener = socket.create_server((pod.address, 0), family=family, backlog=BACKLOG)
    port = int(listener.getsockname()[1])
    claim = Claim(number=arguments.claim, pod=pod.name, uid=pod.uid, index=pod.index, address=pod.address, port=port)
    if not take(run, claim):
        sys.exit(EXIT_REQUEUE)
    log.info("claim %d: this pod carries the run", claim.number)
    sys.exit(conduct(run, claim, listener, InClusterApi()))


if __name__ == "__main__":
    main()
