"""Explanation of a run that waits in a queue of Kueue: the workloads before it, and the quota of its queue."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ropewalk.cluster.backends.base import Waiting
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.text import counted
from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.api.objects import Object, amount, format_amount
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.start_estimate import queue_capacity

VISIBILITY = ("v1beta2", "v1beta1")  # newest first
MOST_NAMED = 3


def explain_waiting(kube: Kubernetes, profile: K8sProfile, workload: Object | None, resources: Resources) -> Waiting:
    """Explain why a workload waits. What this user may not see, or this Kueue does not serve, is left out."""
    if workload is None:
        return Waiting()
    queue, remedy = str(workload["spec"].get("queueName")), ""
    lines: list[str] = []
    for question in (_before, _quota):
        with suppress(BackendError, KeyError, TypeError, ValueError):
            lines += question(kube, queue, workload)
    try:
        capacity = queue_capacity(kube, profile.model_copy(update={"queue": queue}), resources)
    except (BackendError, KeyError):
        capacity = None
    if capacity is not None and 0 < capacity.nodes < resources.nodes.least and not resources.spare_nodes:
        remedy = f"with resources.nodes={capacity.nodes} it would fit into the quota that is free now"
    return Waiting(lines=lines, remedy=remedy)


def _before(kube: Kubernetes, queue: str, workload: Object) -> list[str]:
    """Describe the workloads before this one, in its queue and in all that share the ClusterQueue."""
    pending = _pending(kube, queue)
    mine = next((each for each in pending if each["metadata"]["name"] == workload["metadata"]["name"]), None)
    if mine is None:
        return []
    names = [str(each["metadata"]["name"]) for each in pending if each["positionInLocalQueue"] < mine["positionInLocalQueue"]]
    others = int(mine["positionInClusterQueue"]) - len(names)
    more = [f"{len(names) - MOST_NAMED} more"] * (len(names) > MOST_NAMED) + [f"{others} of other queues"] * (others > 0)
    phrases = ", ".join([*names[:MOST_NAMED], *more])
    number = int(mine["positionInClusterQueue"])
    before = (
        f"{counted(number, 'workload')} {'is' if number == 1 else 'are'} before it: {phrases}" if number else "it is the first"
    )
    return [f"its priority in queue {queue} is {mine.get('priority', 0)}; {before}"]


def _pending(kube: Kubernetes, queue: str) -> Sequence[Any]:
    """Return the waiting workloads of a LocalQueue from Kueue's visibility server, in order."""
    for version in VISIBILITY:
        path = f"apis/visibility.kueue.x-k8s.io/{version}/namespaces/{kube.namespace}/localqueues/{queue}/pendingworkloads"
        try:
            return list(kube.raw(path)["items"])
        except BackendError:
            continue
    return []


def _quota(kube: Kubernetes, queue: str, _: Object) -> list[str]:
    """Describe the quota of the ClusterQueue by flavor and resource, with what is reserved."""
    name = kube.get("LocalQueue", queue)["spec"]["clusterQueue"]
    whole = kube.get("ClusterQueue", name)
    reserved = {
        (flavor["name"], each["name"]): amount(each.get("total") or 0)
        for flavor in (whole.get("status") or {}).get("flavorsReservation") or []
        for each in flavor.get("resources") or []
    }
    phrases = [
        f"{format_amount(each['name'], reserved.get((flavor['name'], each['name']), 0.0))} of"
        f" {format_amount(each['name'], amount(each['nominalQuota']))}"
        + (f" (flavor {flavor['name']})" if len(group["flavors"]) > 1 else "")
        for group in whole["spec"].get("resourceGroups") or []
        for flavor in group["flavors"]
        for each in flavor["resources"]
    ]
    return [f"in use of queue {queue}'s quota ({name}): {', '.join(phrases)}"] if phrases else []
