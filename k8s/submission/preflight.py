"""Checks before anything is created whether a cluster can ever run a request, and whether this user may submit."""

import difflib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.text import counted
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object, amount, format_amount
from ropewalk.k8s.manifests.job import requests
from ropewalk.k8s.profile import K8sProfile

# (verb, group, resource) needed to submit, watch and cancel runs
SUBMITTERS_RIGHTS = tuple((verb, "batch", "jobs") for verb in ("create", "get", "list", "patch", "delete"))


@dataclass(frozen=True, kw_only=True)
class Quota:
    """A limit of a ResourceQuota, in the unit of the resource (cores, bytes, number of devices)."""

    owner: str
    resource: str  # cpu, memory, nvidia.com/gpu, pods
    hard: float
    used: float


def refusal(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> str:
    """Return the reason why this cluster can never run the request, with the remedy; empty if there is none."""
    queries: list[Callable[[], str]] = [
        lambda: _namespace(kube),
        lambda: _claims(kube, profile),
        lambda: _account(kube, profile),
        lambda: _queue(kube, profile),
        lambda: _priority(kube, profile),
        lambda: _quota(kube, profile, resources),
    ]

    def run_query(query: Callable[[], str]) -> str:
        try:
            return query()
        except ForbiddenError:  # users without permission to look may still be allowed to submit
            return ""

    with ThreadPoolExecutor(len(queries)) as pool:
        return next(filter(None, pool.map(run_query, queries)), "")


def quotas(kube: Kubernetes, profile: K8sProfile) -> list[Quota]:
    """Return the limits of the namespace's ResourceQuotas that count the pods of runs, and their use."""
    limits = []
    for each in kube.list("ResourceQuota"):
        if not _counts_runs(each["spec"], profile):
            continue
        status = each.get("status") or {}
        used = status.get("used") or {}
        for name, hard in (status.get("hard") or each["spec"].get("hard") or {}).items():
            resource = name.removeprefix("requests.")
            if not resource.startswith(("limits.", "count/")):
                owner = each["metadata"]["name"]
                limits.append(Quota(owner=owner, resource=resource, hard=amount(hard), used=amount(used.get(name, 0))))
    return limits


def _counts_runs(spec: Object, profile: K8sProfile) -> bool:
    """Return True if a quota's scopes match the pods of runs, which request CPU, have no deadline, and perhaps a class."""
    wanted: list[Object] = [{"scopeName": name, "operator": "Exists"} for name in spec.get("scopes") or []]
    for each in [*wanted, *((spec.get("scopeSelector") or {}).get("matchExpressions") or [])]:
        name, operator, mine = each["scopeName"], each.get("operator", "Exists"), profile.priority_class
        if name == "PriorityClass":
            among = mine in (each.get("values") or [])
            holds = {"In": among, "NotIn": not among, "Exists": mine is not None, "DoesNotExist": mine is None}[operator]
        else:
            holds = name in {"NotBestEffort", "NotTerminating"}
        if not holds:
            return False
    return True


def demand(resources: Resources, profile: K8sProfile) -> dict[str, float]:
    """Return what each node of a request needs, by resource."""
    needs = {name: amount(value) for name, value in requests(resources, profile)["requests"].items()}
    return {**needs, "pods": 1.0}


# --- the queries; each returns a problem or an empty string


def _namespace(kube: Kubernetes) -> str:
    if kube.find("Namespace", kube.namespace) is not None:
        return ""
    return f"there is no namespace {kube.namespace!r}; create it, or correct `namespace` in the cluster's profile"


def _claims(kube: Kubernetes, profile: K8sProfile) -> str:
    wanted = [profile.claim, *(mount.claim for mount in profile.mounts if mount.claim)]
    claims = {each["metadata"]["name"] for each in kube.list("PersistentVolumeClaim")}
    missing = [name for name in wanted if name not in claims]
    if not missing:
        return ""
    key = "claim" if missing[0] == profile.claim else "mounts"
    existing = f"existing: {', '.join(sorted(claims))}" if claims else "there is none"
    return (
        f"there is no PersistentVolumeClaim {missing[0]!r} in namespace {kube.namespace!r} ({existing});"
        f" create it, or correct `{key}` in the cluster's profile"
    )


def _account(kube: Kubernetes, profile: K8sProfile) -> str:
    if profile.service_account is None or kube.find("ServiceAccount", profile.service_account) is not None:
        return ""
    problem = f"there is no ServiceAccount {profile.service_account!r} in namespace {kube.namespace!r}"
    return f"{problem}; apply k8s/manifests/rbac.yaml, or correct `service_account` in the cluster's profile"


def _queue(kube: Kubernetes, profile: K8sProfile) -> str:
    if profile.queue is None:
        return ""
    try:
        names = [each["metadata"]["name"] for each in kube.list("LocalQueue")]
    except NotFoundError:
        return f"queue {profile.queue!r}: this cluster has no Kueue; install it, or remove `queue` from the cluster's profile"
    if profile.queue in names:
        return ""
    near = difflib.get_close_matches(profile.queue, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"existing: {', '.join(names)}" if names else "there is none"
    return f"there is no LocalQueue {profile.queue!r} in namespace {kube.namespace!r}; {hint}"


def _priority(kube: Kubernetes, profile: K8sProfile) -> str:
    if profile.priority_class is None or kube.find("PriorityClass", profile.priority_class) is not None:
        return ""
    return f"there is no PriorityClass {profile.priority_class!r}; correct `priority_class` in the cluster's profile"


def _quota(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> str:
    per_node, nodes = demand(resources, profile), resources.allocated_nodes.least
    for quota in quotas(kube, profile):
        needed = per_node.get(quota.resource, 0.0) * nodes
        if needed > quota.hard:
            fit = math.floor(quota.hard / per_node[quota.resource])
            better = f"{counted(fit, 'node')} would fit" if fit else "request less per node, or ask for a larger quota"
            limit = f"quota {quota.owner!r} of namespace {kube.namespace!r} allows {format_amount(quota.resource, quota.hard)}"
            return f"{limit}, the run needs {format_amount(quota.resource, needed)}; {better}"
    return ""


def check_feasible(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> None:
    """Raise BackendError if this cluster can never run the request."""
    if reason := refusal(kube, profile, resources):
        raise BackendError(reason)


def check_rights(kube: Kubernetes, profile: K8sProfile) -> None:
    """Raise ConfigError with the remedy if this process, such as a sweep's driver in a pod, may not submit runs."""
    missing = missing_rights(kube, SUBMITTERS_RIGHTS)
    if missing:
        account, namespace = profile.service_account or "default", kube.namespace
        role = f"kubectl create rolebinding ropewalk-sweeps -n {namespace} --role=ropewalk-sweeps"
        raise ConfigError(
            f"a sweep's driver submits its trials, but may not {', '.join(missing)} in namespace {namespace!r};"
            f" apply k8s/manifests/rbac.yaml, then run `{role} --serviceaccount={namespace}:{account}`"
        )


def missing_rights(kube: Kubernetes, wanted: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return those of the `wanted` permissions, given as (verb, group, resource), that this user lacks: `create jobs`."""

    def allowed(right: tuple[str, str, str]) -> bool:
        verb, group, resource = right
        name, _, part = resource.partition("/")
        attributes = {"namespace": kube.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
        review: Object = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        answer = kube.create({**review, "spec": {"resourceAttributes": attributes}})
        return bool(answer["status"]["allowed"])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(allowed, wanted))
    return [f"{verb} {resource}" for (verb, _, resource), granted in zip(wanted, answers, strict=True) if not granted]
