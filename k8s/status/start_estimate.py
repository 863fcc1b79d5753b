"""Start estimate of a dry run from Kueue and quotas: if it would wait, why, and which smaller request would start sooner."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.text import counted
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object, amount, format_amount
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.submission.preflight import demand, quotas, refusal

UNLIMITED = 1 << 30  # nodes


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Free room for a request in one queue or quota."""

    nodes: int  # number of the request's nodes that fit now
    short: str  # what is missing for all nodes, and where: `2 CPU more needed in flavor default`
    ahead: int = 0  # workloads that wait in the same queue


def estimate(connect: Callable[[], Kubernetes], profile: K8sProfile, resources: Resources) -> str:
    """Return one sentence: whether the run would wait, why, and which smaller request would start sooner. Never raises."""
    resources = resources.as_allocated()
    try:
        kube = connect()
        if reason := refusal(kube, profile, resources):
            return f"It could never start: {reason}."
        capacities = (queue_capacity(kube, profile, resources), _quota_capacity(kube, profile, resources))
    except RopewalkError as error:
        return f"Kubernetes cannot be asked whether the run would wait: {error}."
    return sentence([capacity for capacity in capacities if capacity], resources)


def sentence(capacities: Sequence[Capacity], resources: Resources) -> str:
    """Return the sentence about a request, decided by the tightest of the capacities."""
    if not capacities:
        return "Kubernetes would accept it; it starts as soon as nodes have room, and no queue or quota tells when."
    tightest = min(capacities, key=lambda capacity: capacity.nodes)
    least, most = resources.nodes.least, resources.nodes.most
    ahead = max(capacity.ahead for capacity in capacities)
    first = f", unless {ahead} that {'waits' if ahead == 1 else 'wait'} in its queue {'comes' if ahead == 1 else 'come'} first"
    if tightest.nodes >= most:
        return f"It would start as soon as nodes have room{first if ahead else ''}."
    if tightest.nodes >= least:
        grow = f"{tightest.nodes} of {most} nodes" if most > 1 else "one node"
        return f"It would start with {grow} ({tightest.short}){first if ahead else ''}."
    fewer = f"; {counted(tightest.nodes, 'node')} would start now" if tightest.nodes else ""
    return f"It would wait: {tightest.short}{fewer}{f'; {ahead} wait in its queue already' if ahead else ''}."


def fitting_nodes(free: Mapping[str, float], per_node: Mapping[str, float]) -> int:
    """Return the number of nodes that fit into the free resources; resources that are not listed there are not limited."""
    counts = [math.floor(free[name] / value + 1e-9) for name, value in per_node.items() if name in free and value > 0]
    return max(0, min(counts)) if counts else UNLIMITED


def lacking(free: Mapping[str, float], per_node: Mapping[str, float], nodes: int) -> str:
    """Describe what is missing for all nodes of a request: `2 CPU and 1.0 GiB memory`."""
    needed = {name: value * nodes for name, value in per_node.items() if name in free}
    return " and ".join(format_amount(name, value - free[name]) for name, value in needed.items() if value > free[name])


def queue_capacity(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> Capacity | None:
    """Return the free capacity of the profile's Kueue queue, for the flavor in which most nodes fit."""
    if profile.queue is None:
        return None
    local = kube.get("LocalQueue", profile.queue)
    ahead = int((local.get("status") or {}).get("pendingWorkloads") or 0)
    try:
        queue = kube.get("ClusterQueue", local["spec"]["clusterQueue"])
    except (ForbiddenError, NotFoundError):
        return Capacity(nodes=UNLIMITED, short="", ahead=ahead)
    per_node = demand(resources, profile)
    capacities = []
    for flavor, free in flavors(queue).items():
        nodes = fitting_nodes(free, per_node)
        short = f"{lacking(free, per_node, resources.nodes.most)} more needed in flavor {flavor} of queue {profile.queue}"
        capacities.append(Capacity(nodes=nodes, short=short, ahead=ahead))
    return max(capacities, key=lambda capacity: capacity.nodes) if capacities else None


def flavors(queue: Object) -> dict[str, dict[str, float]]:
    """Return the free amounts of each flavor of a ClusterQueue by resource, including what it may borrow."""
    reserved: dict[tuple[str, str], float] = {}
    for flavor in (queue.get("status") or {}).get("flavorsReservation") or []:
        for each in flavor.get("resources") or []:
            reserved[flavor["name"], each["name"]] = amount(each.get("total") or 0)
    free_amounts: dict[str, dict[str, float]] = {}
    for group in queue["spec"].get("resourceGroups") or []:
        for flavor in group["flavors"]:
            for each in flavor["resources"]:
                borrowed = amount(each.get("borrowingLimit") or 0) if queue["spec"].get("cohortName") else 0
                free = amount(each["nominalQuota"]) + borrowed - reserved.get((flavor["name"], each["name"]), 0)
                free_amounts.setdefault(flavor["name"], {})[each["name"]] = free
    return free_amounts


def _quota_capacity(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> Capacity | None:
    """Return the free capacity of the namespace's tightest quota; None if the user may not see quotas."""
    per_node = demand(resources, profile)
    try:
        limits = [quota for quota in quotas(kube, profile) if quota.resource in per_node]
    except ForbiddenError:
        return None
    capacities = []
    for quota in limits:
        free = {quota.resource: quota.hard - quota.used}
        short = f"{lacking(free, per_node, resources.nodes.most)} more needed in quota {quota.owner}"
        capacities.append(Capacity(nodes=fitting_nodes(free, per_node), short=short))
    return min(capacities, key=lambda capacity: capacity.nodes) if capacities else None
