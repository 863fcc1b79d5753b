"""The checks of `doctor` for a Kubernetes cluster: server, permissions, quotas, volume, queue."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError, RopewalkError
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes
from ropewalk.k8s.api.objects import format_amount
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.submission.preflight import missing_rights, quotas, refusal

KUEUE = "kueue.x-k8s.io"
LEAST_VERSION = (1, 33)  # first version in which a Job's successPolicy and backoffLimitPerIndex are stable
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
    """Return all checks of a cluster, or a single one if it cannot be reached."""
    try:
        kube = connect()
        groups = kube.groups()
    except RopewalkError as error:
        return [Check(name="kubernetes", ok=False, detail=str(error))]
    queries: list[Callable[[], Sequence[Check]]] = [
        lambda: [_server(kube)],
        lambda: [_rights(kube, profile)],
        lambda: [_account(profile)],
        lambda: [_request(kube, profile)],
        lambda: _quotas(kube, profile),
        lambda: [_volume(kube, profile)],
        lambda: [_workload(groups, profile)],
    ]

    def run_query(query: Callable[[], Sequence[Check]]) -> Sequence[Check]:
        try:
            return query()
        except ForbiddenError as error:
            return [Check(name="rights", ok=True, detail=f"not visible: {error}")]
        except BackendError as error:
            return [Check(name="kubernetes", ok=False, detail=str(error))]

    with ThreadPoolExecutor(len(queries)) as pool:
        return [check for results in pool.map(run_query, queries) for check in results]


def _server(kube: Kubernetes) -> Check:
    version = kube.raw("version")
    detail = f"{version['gitVersion']} at {kube.server}, namespace {kube.namespace}"
    # managed clusters report 33+
    numbers = tuple(int(re.sub(r"\D.*", "", str(version.get(part) or "")) or 0) for part in ("major", "minor"))
    if numbers < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        return Check(
            name="kubernetes", ok=False, detail=f"{detail}: runs need at least {least}; older versions drop fields of their Jobs"
        )
    return Check(name="kubernetes", ok=True, detail=detail)


def _rights(kube: Kubernetes, profile: K8sProfile) -> Check:
    wanted = [*USER_RIGHTS, *(REMOTE_RIGHTS if profile.runs is None else ())]
    missing = missing_rights(kube, wanted)
    if missing:
        detail = f"you may not {', '.join(missing)}; ask for the Role ropewalk-user in k8s/manifests/rbac.yaml"
        return Check(name="rights", ok=False, detail=detail)
    unreadable = missing_rights(kube, EXPLAINING_RIGHTS)
    limitation = f", but not {' and '.join(unreadable)}, so that less can be explained" if unreadable else ""
    return Check(name="rights", ok=True, detail=f"you may submit, watch and cancel{limitation}")


def _account(profile: K8sProfile) -> Check:
    if profile.service_account is None:
        remedy = "apply k8s/manifests/rbac.yaml and set service_account: ropewalk in the cluster's profile"
        effect = "lost pods may be replaced with growing delays, and runs cannot wait for others"
        detail = f"pods have the namespace's default account: {effect}; {remedy}"
        return Check(name="service account", ok=True, detail=detail)
    return Check(name="service account", ok=True, detail=profile.service_account)


def _request(kube: Kubernetes, profile: K8sProfile) -> Check:
    reason = refusal(kube, profile, Resources())
    return Check(name="request", ok=not reason, detail=reason or "a run of one node would be accepted")


def _quotas(kube: Kubernetes, profile: K8sProfile) -> list[Check]:
    return [
        Check(
            name=f"quota {quota.owner}",
            ok=quota.used < quota.hard,
            detail=f"{format_amount(quota.resource, quota.used)} used of {format_amount(quota.resource, quota.hard)}",
        )
        for quota in quotas(kube, profile)
    ]


def _volume(kube: Kubernetes, profile: K8sProfile) -> Check:
    claim = kube.get("PersistentVolumeClaim", profile.claim)
    modes, phase = claim["spec"].get("accessModes") or [], claim.get("status", {}).get("phase")
    name = f"{profile.claim} is {phase}, {', '.join(modes)}"
    access = f"mounted here at {profile.runs}" if profile.runs else "not mounted here: logs and results are read through a pod"
    if phase != "Bound":
        return Check(name="volume", ok=False, detail=f"{name}; `kubectl describe pvc {profile.claim}` shows the reason")
    if "ReadWriteMany" not in modes:
        return Check(name="volume", ok=False, detail=f"{name}: runs with several nodes need ReadWriteMany")
    return Check(name="volume", ok=True, detail=f"{name}, {access}")


def _workload(groups: dict[str, str], profile: K8sProfile) -> Check:
    queue = f"queue {profile.queue}" if profile.queue else "no queue"
    kueue = "Kueue is installed" if KUEUE in groups else "no Kueue"
    runs = "runs are Indexed Jobs (`kubectl get jobs`) and start their own Ray if they need it: KubeRay is not needed"
    return Check(name="workload", ok=True, detail=f"{runs}; {kueue}, {queue}")
