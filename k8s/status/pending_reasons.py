"""Explains why a pod does not start: Kubernetes' message, a remedy, and whether it can ever start without changes."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ropewalk.k8s.api.objects import Object, seconds_of


@dataclass(frozen=True, kw_only=True)
class PendingReason:
    """The reason why a run does not start."""

    word: str  # Kubernetes' reason, such as Unschedulable
    message: str  # Kubernetes' message
    remedy: str = ""
    permanent: bool = False  # waiting does not help

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


PREPARING_SECONDS = 3.0  # normal time of a node to prepare a pod whose image it has
TRANSIENT = "failed to sync"  # the kubelet has not yet received the volume's source
GENTLE_CODES = (0, 75, 85, 143)  # saved and exited; another pod follows
IMAGE_WORDS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
IMAGE_REMEDY = "correct `image` in the cluster's profile, or push the image; set image_pull_secrets if the registry needs a login"
NO_IMAGE = (
    r"(not found|manifest unknown|does not exist|denied|unauthorized|invalid reference format|is not present with pull policy)"
)

# (pattern of a message, remedy, whether waiting does not help); the first match counts
REMEDIES: tuple[tuple[re.Pattern[str], str, bool], ...] = tuple(
    (re.compile(pattern, re.I), remedy, permanent)
    for pattern, remedy, permanent in (
        (rf"image.*{NO_IMAGE}", IMAGE_REMEDY, True),
        (r"Failed to pull image|Back-off pulling image", IMAGE_REMEDY, False),
        (r"persistentvolumeclaim \S+ not found", "create the claim, or correct `claim` or `mounts` in the profile", True),
        (
            r"unbound immediate PersistentVolumeClaims|WaitForFirstConsumer",
            "the claim has no volume yet: `kubectl get pvc`",
            False,
        ),
        (
            r"strict decoding error: unknown field",
            "correct `pod` in the cluster's profile; Kubernetes before 1.33 lacks fields that every run needs",
            True,
        ),
        (r"secret \S+ not found", "create the Secret, or correct `secrets` in the cluster's profile", True),
        (
            r"serviceaccount \S+ not found",
            "apply k8s/manifests/rbac.yaml, or correct `service_account` in the cluster's profile",
            True,
        ),
        (r"no PriorityClass with name|priority ?class \S+ not found", "correct `priority_class` in the cluster's profile", True),
        (r"must specify (limits|requests)?.*memory", "set resources.memory_gib: the namespace's quota counts memory", True),
        (r"must specify", "set the resource that the namespace's quota counts: resources.cpus, resources.memory_gib", True),
        (
            r"exceeded quota",
            "request less, or wait until other jobs of the namespace have ended: `kubectl describe quota`",
            False,
        ),
        (r"violates PodSecurity", "the profile's `pod` patch violates the namespace's Pod Security level", True),
        (
            r"exec: .*(no such file|not found|permission denied)|stat \S+: (no such file|permission denied)",
            "correct `python` in the cluster's profile: a Python in the image that the profile's `user` may execute",
            True,
        ),
        (r"No module named '?ropewalk\b", "the image does not contain ropewalk; build one with k8s/image/Dockerfile", True),
        (r"forbidden", "ask for the permissions listed in k8s/manifests/rbac.yaml", False),
        (r"Insufficient (\S+)", "request less per node or fewer nodes, or wait for other jobs to end", False),
        (r"didn't match Pod's node affinity|node\(s\) didn't match", "correct `node_selector` in the cluster's profile", False),
        (r"untolerated taint", "add `tolerations` to the cluster's profile, or wait for other nodes", False),
    )
)


def remedy_of(message: str) -> tuple[str, bool]:
    """Return the remedy for a message of Kubernetes, and whether waiting does not help; ('', False) if it is unknown."""
    return next(((remedy, permanent) for pattern, remedy, permanent in REMEDIES if pattern.search(message)), ("", False))


def pending_reason_of(word: str, message: str) -> PendingReason:
    """Return the reason for a reason word and a message of Kubernetes, with the remedy."""
    message = simplify(message)
    remedy, permanent = remedy_of(message)
    return PendingReason(word=word, message=message, remedy=remedy, permanent=permanent)


def with_remedy(message: str) -> str:
    """Append the remedy, if one is known, to a refusal of Kubernetes."""
    remedy, _ = remedy_of(message)
    return f"{message}; {remedy}" if remedy else message


def pod_reason(pod: Object, events: Sequence[Object] = ()) -> PendingReason | None:
    """Return the reason why a pod does not run, if there is one; `events` are the warnings about it."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message") or "no node has room for it yet"
            return pending_reason_of(condition.get("reason") or "Unschedulable", message)
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        word, message = waiting.get("reason") or "", waiting.get("message") or ""
        if word in IMAGE_WORDS:
            image = container.get("image") or ""
            return pending_reason_of(word, message if image in message and "image" in message else f"image {image}: {message}")
        if word and word not in {"ContainerCreating", "PodInitializing"}:
            return pending_reason_of(word, message or word)
    if status.get("phase") == "Failed":
        return _failure_reason(pod)
    if first := next((c["name"] for c in status.get("initContainerStatuses") or [] if "running" in (c.get("state") or {})), ""):
        return PendingReason(word="Init", message=f"container {first} of its pod has to finish first")
    if status.get("phase") == "Pending" and events:
        return reason_of_events(events)
    node = pod["spec"].get("nodeName")
    since = next((c["lastTransitionTime"] for c in status.get("conditions") or [] if c["type"] == "PodScheduled"), None)
    if status.get("phase") == "Pending" and node and time.time() - seconds_of(since) > PREPARING_SECONDS:
        images = ", ".join(dict.fromkeys(container["image"] for container in pod["spec"]["containers"]))
        return PendingReason(
            word="ContainerCreating", message=f"{node} prepares its pod: it pulls image {images} or mounts volumes"
        )
    return None


def _failure_reason(pod: Object) -> PendingReason | None:
    """Return why a pod ended before the run could begin, from its last log lines; None if it has saved and exited."""
    status = pod["status"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode", 0) == 0:
            continue
        lines = [line.strip() for line in str(ended.get("message") or "").splitlines() if line.strip()]
        if ended.get("exitCode") in GENTLE_CODES:
            return None
        message = lines[-1] if lines else f"exit code {ended.get('exitCode')}"
        word = ended.get("reason") or "Error"
        remedy, permanent = remedy_of(message)
        return PendingReason(
            word=word, message=f"its pods end as they start: {simplify(message)[-300:]}", remedy=remedy, permanent=permanent
        )
    message = status.get("message") or ""
    return pending_reason_of(status.get("reason") or "Failed", message) if message else None


def reason_of_events(events: Sequence[Object]) -> PendingReason | None:
    """Return the reason from warnings about a Job or a pod: a permanent one if there is any, else the newest."""
    newest_first = sorted((e for e in events if TRANSIENT not in (e.get("message") or "")), key=_last_seen, reverse=True)
    reasons = [pending_reason_of(e.get("reason") or "Warning", e.get("message") or "") for e in newest_first]
    return min(reasons, key=lambda each: not each.permanent, default=None)


def workload_reason(workload: Object) -> PendingReason | None:
    """Return Kueue's reason for not admitting a workload."""
    if (workload.get("spec") or {}).get("active") is False:
        return PendingReason(word="Held", message="it is held", remedy="`ropewalk release RUN` lets it start")
    conditions = {each["type"]: each for each in (workload.get("status") or {}).get("conditions") or []}
    for kind in ("QuotaReserved", "Admitted"):
        condition = conditions.get(kind)
        if condition and condition["status"] == "False":
            message = simplify(condition.get("message") or "it waits for quota")
            permanent = condition.get("reason") == "Inadmissible" and "doesn't exist" in message
            remedy = "correct `queue` in the cluster's profile" if permanent else ""
            message = f"queue {_queue(workload)}: {message}"
            return PendingReason(word=condition.get("reason") or kind, message=message, remedy=remedy)
    if "QuotaReserved" in conditions:
        return None
    return PendingReason(word="Queued", message=f"queue {_queue(workload)} has not considered it")


def _queue(workload: Object) -> str:
    return str((workload.get("spec") or {}).get("queueName"))


def simplify(message: str) -> str:
    """Reduce a message of Kubernetes to one line without internal details."""
    message = " ".join(message.split())
    message = re.sub(r"\(Error code .*?\)|rpc error: code = \w+ desc = ", "", message)
    message = re.sub(r"failed to create containerd task: .*: (exec: .*)$", r"\1", message)
    message = re.sub(r" ?preemption: 0/\d+ nodes are available:.*$", "", message)
    message = re.sub(r'^(Error creating: )?(pods|jobs\.batch) "([^"]+)" is forbidden: ', "", message)
    return message.strip().removesuffix("no new claims to deallocate,").strip().rstrip(".")


def _last_seen(event: Object) -> str:
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or (event.get("metadata") or {}).get("creationTimestamp") or ""
    )
