"""The checks of `doctor` on a Kubernetes cluster: whether it answers, what it has, what the user may do, what would run."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError, RopewalkError
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes
from ropewalk.k8s.api.objects import shown
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.submission.preflight import missing_rights, quotas, refusal

KUEUE = "kueue.x-k8s.io"
LEAST_VERSION = (1, 33)  # a Job's successPolicy and backoffLimitPerIndex are for good from there on
USER_RIGHTS = (
    ("create", "batch", "jobs"),
    ("list", "batch", "jobs"),
    ("patch", "batch", "jobs"),
    ("delete", "batch", "jobs"),
    ("list", "", "pods"),
    ("list", "", "events"),
)
REMOTE_RIGHTS = (("create", "", "pods/exec"), ("create", "", "configmaps"))
EXPLAINING_RIGHTS = (("list", "", "resourcequotas"), ("list", "", "persistentvolumeclaims"))


def checks(connect: Callable[[], Kubernetes], profile: K8sProfile) -> list[Check]:
    """All checks of a cluster, or the one that says why it cannot be reached."""
    try:
        kube = connect()
        groups = kube.groups()
    except RopewalkError as error:
        return [Check(name="kubernetes", ok=False, detail=str(error))]
    questions: list[Callable[[], Sequence[Check]]] = [
        lambda: [_server(kube)],
        lambda: [_rights(kube, profile)],
        lambda: [_account(profile)],
        lambda: [_request(kube, profile)],
        lambda: _quotas(kube, profile),
        lambda: [_volume(kube, profile)],
        lambda: [_workload(groups, profile)],
    ]

    def answer(question: Callable[[], Sequence[Check]]) -> Sequence[Check]:
        try:
            return question()
        except ForbiddenError as error:
            return [Check(name="rights", ok=True, detail=f"not seen: {error}")]
        except BackendError as error:
            return [Check(name="kubernetes", ok=False, detail=str(error))]

    with ThreadPoolExecutor(len(questions)) as pool:
        return [check for found in pool.map(answer, questions) for check in found]


def _server(kube: Kubernetes) -> Check:
    version = kube.raw("version")
    detail = f"{version['gitVersion']} at {kube.server}, namespace {kube.namespace}"
    # managed clusters say 33+
    numbers = tuple(int(re.sub(r"\D.*", "", str(version.get(part) or "")) or 0) for part in ("major", "minor"))
    if numbers < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        return Check(
            name="kubernetes", ok=False, detail=f"{detail}: runs need at least {least}, older ones drop fields of their Jobs"
        )
    return Check(name="kubernetes", ok=True, detail=detail)


def _rights(kube: Kubernetes, profile: K8sProfile) -> Check:
    wanted = [*USER_RIGHTS, *(REMOTE_RIGHTS if profile.runs is None else ())]
    missing = missing_rights(kube, wanted)
    if missing:
        detail = f"you may not {', '.join(missing)}; ask for the Role ropewalk-user of k8s/manifests/rbac.yaml"
        return Check(name="rights", ok=False, detail=detail)
    blind = missing_rights(kube, EXPLAINING_RIGHTS)
    more = f", but not {' and '.join(blind)}, so that less can be explained" if blind else ""
    return Check(name="rights", ok=True, detail=f"you may submit, watch and cancel{more}")


def _account(profile: K8sProfile) -> Check:
    if profile.service_account is None:
        remedy = "apply k8s/manifests/rbac.yaml and set service_account: ropewalk in the cluster's profile"
        lack = "lost pods may be replaced later and later, and no run can wait for another"
        detail = f"pods have the namespace's default account: {lack}; {remedy}"
        return Check(name="service account", ok=True, detail=detail)
    return Check(name="service account", ok=True, detail=profile.service_account)


def _request(kube: Kubernetes, profile: K8sProfile) -> Check:
    said = refusal(kube, profile, Resources())
    return Check(name="request", ok=not said, detail=said or "a run of one node would be accepted")


def _quotas(kube: Kubernetes, profile: K8sProfile) -> list[Check]:
    return [
        Check(
            name=f"quota {quota.owner}",
            ok=quota.used < quota.hard,
            detail=f"{shown(quota.resource, quota.used)} used of {shown(quota.resource, quota.hard)}",
        )
        for quota in quotas(kube, profile)
    ]


def _volume(kube: Kubernetes, profile: K8sProfile) -> Check:
    claim = kube.get("PersistentVolumeClaim", profile.claim)
    modes, phase = claim["spec"].get("accessModes") or [], claim.get("status", {}).get("phase")
    name = f"{profile.claim} is {phase}, {', '.join(modes)}"
    seen = f"seen here as {profile.runs}" if profile.runs else "not seen here: logs and results come through a pod that reads it"
    if phase != "Bound":
        return Check(name="volume", ok=False, detail=f"{name}; `kubectl describe pvc {profile.claim}` tells why")
    if "ReadWriteMany" not in modes:
        return Check(name="volume", ok=False, detail=f"{name}: runs of several nodes need ReadWriteMany")
    return Check(name="volume", ok=True, detail=f"{name}, {seen}")


def _workload(groups: dict[str, str], profile: K8sProfile) -> Check:
    queue = f"queue {profile.queue}" if profile.queue else "no queue"
    kueue = "Kueue is there" if KUEUE in groups else "no Kueue"
    runs = "runs are Indexed Jobs (`kubectl get jobs`) and start their own Ray where they need one: KubeRay need not be installed"
    return Check(name="workload", ok=True, detail=f"{runs}; {kueue}, {queue}")
