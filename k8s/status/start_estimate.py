"""Would a run wait, and why, and what smaller request would start sooner: asked of the cluster before anything is submitted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.config import Resources
from cluster.errors import RopewalkError
from cluster.text import counted
from k8s.api.client import ForbiddenError, Kubernetes, NotFoundError, Object
from k8s.profile import K8sProfile
from k8s.submission.preflight import amount, demand, quotas, refusal, shown


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many nodes of a request there is room for now, by somebody's account."""

    nodes: int
    short: str  # what more would be needed for all, and where: `2 more CPU needed in flavor default`
    ahead: int = 0  # workloads that wait for the same


def foresee(connect: Callable[[], Kubernetes], profile: K8sProfile, resources: Resources) -> str:
    """Whether the run would wait, why, and what smaller request would start sooner; one sentence. Raises no error."""
    try:
        kube = connect()
        if said := refusal(kube, profile, resources):
            return f"It could never start: {said}."
        rooms = [room for room in (_in_queue(kube, profile, resources), _in_quotas(kube, profile, resources)) if room]
        if (free := _on_nodes(kube, profile, resources)) is not None:
            rooms.append(free)
    except RopewalkError as error:
        return f"Kubernetes cannot be asked whether it would wait: {error}."
    return sentence(rooms, resources)


def sentence(rooms: Sequence[Room], resources: Resources) -> str:
    """The answer, of the tightest of these."""
    if not rooms:
        return "Kubernetes would take it; it does not let you see whether there is room."
    tightest = min(rooms, key=lambda room: room.nodes)
    least, most = resources.nodes.least, resources.nodes.most
    ahead = max(room.ahead for room in rooms)
    first = f", unless {ahead} that {'waits' if ahead == 1 else 'wait'} in its queue {'comes' if ahead == 1 else 'come'} first"
    if tightest.nodes >= most:
        return f"It would start at once{first if ahead else ''}."
    if tightest.nodes >= least:
        grow = f"{tightest.nodes} of {most} nodes" if most > 1 else "one node"
        return f"It would start at once with {grow} ({tightest.short}){first if ahead else ''}."
    fewer = f"; {counted(tightest.nodes, 'node')} would start now" if tightest.nodes else ""
    return f"It would wait: {tightest.short}{fewer}{f'; {ahead} wait in its queue already' if ahead else ''}."


def fitting(free: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many nodes of a request fit into what is free; what is not named is not limited."""
    counts = [math.floor(free[name] / value + 1e-9) for name, value in asked.items() if name in free and value > 0]
    return max(0, min(counts)) if counts else 1 << 30


def lacking(free: Mapping[str, float], asked: Mapping[str, float], nodes: int) -> str:
    """`2 CPU and 1.0 GiB memory`: what more all nodes of a request would need."""
    short = [(name, value * nodes - free[name]) for name, value in asked.items() if name in free and value * nodes > free[name]]
    return " and ".join(shown(name, missing) for name, missing in short)


# --- Kueue


def _in_queue(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> Room | None:
    if profile.queue is None:
        return None
    local = kube.get("LocalQueue", profile.queue)
    ahead = int((local.get("status") or {}).get("pendingWorkloads") or 0)
    try:
        queue = kube.get("ClusterQueue", local["spec"]["clusterQueue"])
    except (ForbiddenError, NotFoundError):
        return Room(nodes=1 << 30, short="", ahead=ahead)
    asked = demand(resources, profile)
    rooms = []
    for flavor, free in flavors(queue).items():
        nodes = fitting(free, asked)
        short = lacking(free, asked, resources.nodes.most)
        rooms.append(Room(nodes=nodes, short=f"{short} more needed in flavor {flavor} of queue {profile.queue}", ahead=ahead))
    return max(rooms, key=lambda room: room.nodes) if rooms else None


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


# --- quota and nodes


def _in_quotas(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> Room | None:
    asked = demand(resources, profile)
    try:
        limits = [quota for quota in quotas(kube) if quota.resource in asked]
    except ForbiddenError:
        return None
    rooms = []
    for quota in limits:
        free = {quota.resource: quota.hard - quota.used}
        short = lacking(free, asked, resources.nodes.most)
        rooms.append(Room(nodes=fitting(free, asked), short=f"{short} more needed in quota {quota.owner}"))
    return min(rooms, key=lambda room: room.nodes) if rooms else None


def _on_nodes(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> Room | None:
    """What the scheduler would find, where one may look at nodes and at the pods on them; affinities are not looked at."""
    asked = demand(resources, profile)
    try:
        nodes = [node for node in kube.list("Node") if _usable(node, profile)]
        pods = kube.list_everywhere("Pod", fields="status.phase!=Succeeded,status.phase!=Failed")
    except ForbiddenError:
        return None
    used: dict[str, dict[str, float]] = {}
    for pod in pods:
        mine = used.setdefault(pod["spec"].get("nodeName") or "", {})
        mine["pods"] = mine.get("pods", 0) + 1
        for container in pod["spec"]["containers"]:
            for name, value in ((container.get("resources") or {}).get("requests") or {}).items():
                mine[name] = mine.get(name, 0) + amount(value)
    free = [_free(node, used.get(node["metadata"]["name"], {}), asked) for node in nodes]
    counts = sum(fitting(each, asked) for each in free)
    most = resources.nodes.most
    wanted = " and ".join(shown(name, value) for name, value in asked.items() if name != "pods")
    room = f"there is room for {counts or 'none'} of {most} pods of {wanted} on the {len(nodes)} nodes that it may use"
    return Room(nodes=counts, short=room)


def _free(node: Object, used: Mapping[str, float], asked: Mapping[str, float]) -> dict[str, float]:
    offered = node["status"].get("allocatable") or {}
    return {name: amount(offered.get(name, 0)) - used.get(name, 0) for name in asked}


def _usable(node: Object, profile: K8sProfile) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in profile.node_selector.items()) or node["spec"].get("unschedulable"):
        return False
    taints = [taint for taint in node["spec"].get("taints") or [] if taint["effect"] in {"NoSchedule", "NoExecute"}]
    return all(any(_tolerates(each, taint) for each in profile.tolerations) for taint in taints)


def _tolerates(toleration: object, taint: Object) -> bool:
    key, operator, value, effect = (getattr(toleration, name) for name in ("key", "operator", "value", "effect"))
    if effect not in (None, taint["effect"]) or key not in (None, taint["key"]):
        return False
    return bool(operator == "Exists" or value == (taint.get("value") or None))
