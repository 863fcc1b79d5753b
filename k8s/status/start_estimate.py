"""Would a run wait, and why, and what smaller request would start sooner: by Kueue and quotas, before anything is submitted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.text import counted
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object, amount, shown
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.submission.preflight import demand, quotas, refusal


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How many nodes of a request there is room for now, by somebody's account."""

    nodes: int
    short: str  # what more would be needed for all, and where: `2 CPU more needed in flavor default`
    ahead: int = 0  # workloads that wait for the same


def estimate(connect: Callable[[], Kubernetes], profile: K8sProfile, resources: Resources) -> str:
    """Whether the run would wait, why, and what smaller request would start sooner; one sentence. Raises no error."""
    try:
        kube = connect()
        if said := refusal(kube, profile, resources):
            return f"It could never start: {said}."
        found = (_in_queue(kube, profile, resources), _in_quotas(kube, profile, resources))
    except RopewalkError as error:
        return f"Kubernetes cannot be asked whether it would wait: {error}."
    return sentence([capacity for capacity in found if capacity], resources)


def sentence(capacities: Sequence[Capacity], resources: Resources) -> str:
    """Whether a request would wait, in a sentence, by the tightest of these capacities."""
    if not capacities:
        return "Kubernetes would take it; it starts as soon as nodes have room, and no queue or quota says when."
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


def concurrent_trials(free: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many nodes of a request fit into what is free; a resource that is not named is not limited."""
    counts = [math.floor(free[name] / value + 1e-9) for name, value in asked.items() if name in free and value > 0]
    return max(0, min(counts)) if counts else 1 << 30


def lacking(free: Mapping[str, float], asked: Mapping[str, float], nodes: int) -> str:
    """What more all nodes of a request would need: `2 CPU and 1.0 GiB memory`."""
    short = [(name, value * nodes - free[name]) for name, value in asked.items() if name in free and value * nodes > free[name]]
    return " and ".join(shown(name, missing) for name, missing in short)


def _in_queue(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> Capacity | None:
    """What Kueue has left for the profile's queue: in the flavor that fits most."""
    if profile.queue is None:
        return None
    local = kube.get("LocalQueue", profile.queue)
    ahead = int((local.get("status") or {}).get("pendingWorkloads") or 0)
    try:
        queue = kube.get("ClusterQueue", local["spec"]["clusterQueue"])
    except (ForbiddenError, NotFoundError):
        return Capacity(nodes=1 << 30, short="", ahead=ahead)
    asked = demand(resources, profile)
    found = []
    for flavor, free in flavors(queue).items():
        nodes = concurrent_trials(free, asked)
        short = lacking(free, asked, resources.nodes.most)
        found.append(Capacity(nodes=nodes, short=f"{short} more needed in flavor {flavor} of queue {profile.queue}", ahead=ahead))
    return max(found, key=lambda capacity: capacity.nodes) if found else None


def flavors(queue: Object) -> dict[str, dict[str, float]]:
    """What is free of each flavor of a ClusterQueue, by resource; what it may borrow counts."""
    reserved: dict[tuple[str, str], float] = {}
    for flavor in (queue.get("status") or {}).get("flavorsReservation") or []:
        for each in flavor.get("resources") or []:
            reserved[flavor["name"], each["name"]] = amount(each.get("total") or 0)
    found: dict[str, dict[str, float]] = {}
    for group in queue["spec"].get("resourceGroups") or []:
        for flavor in group["flavors"]:
            for each in flavor["resources"]:
                borrowed = amount(each.get("borrowingLimit") or 0) if queue["spec"].get("cohortName") else 0
                free = amount(each["nominalQuota"]) + borrowed - reserved.get((flavor["name"], each["name"]), 0)
                found.setdefault(flavor["name"], {})[each["name"]] = free
    return found


def _in_quotas(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> Capacity | None:
    """What the tightest of the namespace's quotas has left, where one may look at them."""
    asked = demand(resources, profile)
    try:
        limits = [quota for quota in quotas(kube, profile) if quota.resource in asked]
    except ForbiddenError:
        return None
    found = []
    for quota in limits:
        free = {quota.resource: quota.hard - quota.used}
        short = lacking(free, asked, resources.nodes.most)
        found.append(Capacity(nodes=concurrent_trials(free, asked), short=f"{short} more needed in quota {quota.owner}"))
    return min(found, key=lambda capacity: capacity.nodes) if found else None
