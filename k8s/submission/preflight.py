"""Asks a cluster before anything is created whether it can ever run a request, and whether this user may submit."""

import difflib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.text import counted
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object, amount, shown
from ropewalk.k8s.manifests.job import requests
from ropewalk.k8s.profile import K8sProfile

# (verb, group, resource) without which nobody submits, watches and cancels
SUBMITTERS_RIGHTS = tuple((verb, "batch", "jobs") for verb in ("create", "get", "list", "patch", "delete"))


@dataclass(frozen=True, kw_only=True)
class Quota:
    """One line of a ResourceQuota, in the unit of the resource (cores, bytes, pieces)."""

    owner: str
    resource: str  # cpu, memory, nvidia.com/gpu, pods
    hard: float
    used: float


def refusal(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> str:
    """Why this cluster can never run the request, with the remedy; empty where nothing speaks against it."""
    questions: list[Callable[[], str]] = [
        lambda: _namespace(kube),
        lambda: _claims(kube, profile),
        lambda: _account(kube, profile),
        lambda: _queue(kube, profile),
        lambda: _priority(kube, profile),
        lambda: _quota(kube, profile, resources),
    ]

    def answer(question: Callable[[], str]) -> str:
        try:
            return question()
        except ForbiddenError:  # who may not look may still be allowed to run
            return ""

    with ThreadPoolExecutor(len(questions)) as pool:
        return next(filter(None, pool.map(answer, questions)), "")


def quotas(kube: Kubernetes, profile: K8sProfile) -> list[Quota]:
    """What the namespace's ResourceQuotas allow pods of runs, and how much of it is used."""
    found = []
    for each in kube.list("ResourceQuota"):
        if not _counts_runs(each["spec"], profile):
            continue
        status = each.get("status") or {}
        used = status.get("used") or {}
        for name, hard in (status.get("hard") or each["spec"].get("hard") or {}).items():
            resource = name.removeprefix("requests.")
            if not resource.startswith(("limits.", "count/")):
                owner = each["metadata"]["name"]
                found.append(Quota(owner=owner, resource=resource, hard=amount(hard), used=amount(used.get(name, 0))))
    return found


def _counts_runs(spec: Object, profile: K8sProfile) -> bool:
    """Whether a quota's scopes hold for pods of runs: they request CPU, have no deadline of their own, and a class at most."""
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
    """What one node of a request asks for, by resource."""
    asked = {name: amount(value) for name, value in requests(resources, profile)["requests"].items()}
    return {**asked, "pods": 1.0}


# --- the questions, each answered with a complaint or nothing


def _namespace(kube: Kubernetes) -> str:
    try:
        kube.get("Namespace", kube.namespace)
    except NotFoundError:
        return f"there is no namespace {kube.namespace!r}; create it, or correct namespace in the cluster's profile"
    return ""


def _claims(kube: Kubernetes, profile: K8sProfile) -> str:
    wanted = [profile.claim, *(mount.claim for mount in profile.mounts)]
    claims = {each["metadata"]["name"] for each in kube.list("PersistentVolumeClaim")}
    missing = [name for name in wanted if name not in claims]
    if not missing:
        return ""
    key = "claim" if missing[0] == profile.claim else "mounts"
    there = f"there are {', '.join(sorted(claims))}" if claims else "there is none"
    return (
        f"there is no PersistentVolumeClaim {missing[0]!r} in namespace {kube.namespace!r} ({there});"
        f" create it, or correct {key} in the cluster's profile"
    )


def _account(kube: Kubernetes, profile: K8sProfile) -> str:
    if profile.service_account is None:
        return ""
    try:
        kube.get("ServiceAccount", profile.service_account)
    except NotFoundError:
        said = f"there is no ServiceAccount {profile.service_account!r} in namespace {kube.namespace!r}"
        return f"{said}; apply k8s/manifests/rbac.yaml, or correct service_account in the cluster's profile"
    return ""


def _queue(kube: Kubernetes, profile: K8sProfile) -> str:
    if profile.queue is None:
        return ""
    try:
        names = [each["metadata"]["name"] for each in kube.list("LocalQueue")]
    except NotFoundError:
        return f"queue {profile.queue!r}: this cluster has no Kueue; install it, or take queue out of the cluster's profile"
    if profile.queue in names:
        return ""
    near = difflib.get_close_matches(profile.queue, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}" if names else "there is none"
    return f"there is no LocalQueue {profile.queue!r} in namespace {kube.namespace!r}; {hint}"


def _priority(kube: Kubernetes, profile: K8sProfile) -> str:
    if profile.priority_class is None:
        return ""
    try:
        kube.get("PriorityClass", profile.priority_class)
    except NotFoundError:
        return f"there is no PriorityClass {profile.priority_class!r}; correct priority_class in the cluster's profile"
    return ""


def _quota(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> str:
    asked, nodes = demand(resources, profile), resources.nodes.least
    for quota in quotas(kube, profile):
        needed = asked.get(quota.resource, 0.0) * nodes
        if needed > quota.hard:
            fit = math.floor(quota.hard / asked[quota.resource])
            better = f"{counted(fit, 'node')} would fit" if fit else "request less per node, or a larger quota"
            told = f"quota {quota.owner!r} of namespace {kube.namespace!r} allows {shown(quota.resource, quota.hard)}"
            return f"{told}, the run asks for {shown(quota.resource, needed)}; {better}"
    return ""


def refuse_the_impossible(kube: Kubernetes, profile: K8sProfile, resources: Resources) -> None:
    """Raise BackendError where this cluster can never run the request."""
    if said := refusal(kube, profile, resources):
        raise BackendError(said)


def refuse_without_rights(kube: Kubernetes, profile: K8sProfile) -> None:
    """Raise ConfigError where this process, such as a sweep's driver in a pod, may not submit runs; it names the remedy."""
    missing = missing_rights(kube, SUBMITTERS_RIGHTS)
    if missing:
        account, where = profile.service_account or "default", kube.namespace
        words = f"kubectl create rolebinding ropewalk-sweeps -n {where} --role=ropewalk-sweeps --serviceaccount={where}:{account}"
        raise ConfigError(
            f"a sweep's driver submits its trials, and may not {', '.join(missing)} in namespace {where!r};"
            f" apply k8s/manifests/rbac.yaml, and then `{words}`"
        )


def missing_rights(kube: Kubernetes, wanted: Sequence[tuple[str, str, str]]) -> list[str]:
    """The rights, as (verb, group, resource), that this user does not have in the namespace: `create jobs`."""

    def allowed(right: tuple[str, str, str]) -> bool:
        verb, group, resource = right
        name, _, part = resource.partition("/")
        attributes = {"namespace": kube.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
        review: Object = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        answer = kube.create({**review, "spec": {"resourceAttributes": attributes}})
        return bool(answer["status"]["allowed"])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(allowed, wanted))
    return [f"{verb} {resource}" for (verb, _, resource), yes in zip(wanted, answers, strict=True) if not yes]
