"""Why a pod does not start: Kubernetes' own words, what to do, and whether it can ever start as it is."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ropewalk.k8s.api.objects import Object, seconds_of


@dataclass(frozen=True, kw_only=True)
class PendingReason:
    """What keeps a run from starting."""

    word: str  # Kubernetes' own, such as Unschedulable
    said: str  # its own sentence
    remedy: str = ""
    permanent: bool = False  # waiting does not mend it

    def __str__(self) -> str:
        return f"{self.said}; {self.remedy}" if self.remedy else self.said


PREPARING_SECONDS = 3.0  # of a node with the image and an ordinary volume
PASSING = "failed to sync"  # a kubelet that has not seen the volume's source yet
GENTLE_CODES = (0, 75, 85, 143)  # saved and left; another pod follows
IMAGE_WORDS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
IMAGE_REMEDY = "correct image in the cluster's profile, or push the image; image_pull_secrets where the registry wants a login"
NO_IMAGE = (
    r"(not found|manifest unknown|does not exist|denied|unauthorized|invalid reference format|is not present with pull policy)"
)

# (what Kubernetes says, what to do, whether waiting cannot help); the first that matches decides
REMEDIES: tuple[tuple[re.Pattern[str], str, bool], ...] = tuple(
    (re.compile(pattern, re.I), remedy, permanent)
    for pattern, remedy, permanent in (
        (rf"image.*{NO_IMAGE}", IMAGE_REMEDY, True),
        (r"Failed to pull image|Back-off pulling image", IMAGE_REMEDY, False),
        (r"persistentvolumeclaim \S+ not found", "create the claim, or correct claim or mounts in the cluster's profile", True),
        (
            r"unbound immediate PersistentVolumeClaims|WaitForFirstConsumer",
            "the claim waits for a volume: `kubectl get pvc`",
            False,
        ),
        (
            r"strict decoding error: unknown field",
            "correct pod in the cluster's profile; Kubernetes before 1.33 lacks fields that every run needs",
            True,
        ),
        (r"secret \S+ not found", "create the Secret, or correct secrets in the cluster's profile", True),
        (
            r"serviceaccount \S+ not found",
            "apply k8s/manifests/rbac.yaml, or correct service_account in the cluster's profile",
            True,
        ),
        (r"no PriorityClass with name|priority ?class \S+ not found", "correct priority_class in the cluster's profile", True),
        (r"must specify (limits|requests)?.*memory", "set resources.memory_gib: the namespace's quota counts memory", True),
        (r"must specify", "set the resource that the namespace's quota counts: resources.cpus, resources.memory_gib", True),
        (
            r"exceeded quota",
            "request less, or wait until others of the namespace have ended: `kubectl describe quota`",
            False,
        ),
        (r"violates PodSecurity", "the profile's pod patch asks for what the namespace's Pod Security level forbids", True),
        (
            r"exec: .*(no such file|not found|permission denied)|stat \S+: (no such file|permission denied)",
            "correct python in the cluster's profile: a Python in the image that user 1000, or the profile's, may start",
            True,
        ),
        (
            r"No module named '?(cluster|k8s)\b",
            "the image holds no ropewalk; k8s/image/Dockerfile builds one that does",
            True,
        ),
        (r"forbidden", "ask for the rights that k8s/manifests/rbac.yaml lists", False),
        (r"Insufficient (\S+)", "request less per node or fewer nodes, or wait for other jobs to end", False),
        (r"didn't match Pod's node affinity|node\(s\) didn't match", "correct node_selector in the cluster's profile", False),
        (r"untolerated taint", "add tolerations to the cluster's profile, or wait for other nodes", False),
    )
)


def remedy_of(said: str) -> tuple[str, bool]:
    """What to do about a sentence of Kubernetes, and whether waiting cannot help; ('', False): it is not known."""
    return next(((remedy, permanent) for pattern, remedy, permanent in REMEDIES if pattern.search(said)), ("", False))


def reason(word: str, said: str) -> PendingReason:
    """A word and a sentence of Kubernetes as the reason why a run waits, with the remedy."""
    said = tidy(said)
    remedy, permanent = remedy_of(said)
    return PendingReason(word=word, said=said, remedy=remedy, permanent=permanent)


def with_remedy(said: str) -> str:
    """A refusal of Kubernetes, and what to do about it where that is known."""
    remedy, _ = remedy_of(said)
    return f"{said}; {remedy}" if remedy else said


def pod_reason(pod: Object, events: Sequence[Object] = ()) -> PendingReason | None:
    """What keeps a pod from running, if anything does; `events` are the warnings about it."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return reason(condition.get("reason") or "Unschedulable", condition.get("message") or "no node has room for it yet")
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        word, said = waiting.get("reason") or "", waiting.get("message") or ""
        if word in IMAGE_WORDS:
            image = container.get("image") or ""
            return reason(word, said if image in said and "image" in said else f"image {image}: {said}")
        if word and word not in {"ContainerCreating", "PodInitializing"}:
            return reason(word, said or word)
    if status.get("phase") == "Failed":
        return _failed(pod)
    if first := next((c["name"] for c in status.get("initContainerStatuses") or [] if "running" in (c.get("state") or {})), ""):
        return PendingReason(word="Init", said=f"container {first} of its pod has to end first")
    if status.get("phase") == "Pending" and events:
        return reason_of_events(events)
    node = pod["spec"].get("nodeName")
    since = next((c["lastTransitionTime"] for c in status.get("conditions") or [] if c["type"] == "PodScheduled"), None)
    if status.get("phase") == "Pending" and node and time.time() - seconds_of(since) > PREPARING_SECONDS:
        images = ", ".join(dict.fromkeys(container["image"] for container in pod["spec"]["containers"]))
        return PendingReason(
            word="ContainerCreating", said=f"{node} prepares its pod: it pulls image {images}, or mounts volumes"
        )
    return None


def _failed(pod: Object) -> PendingReason | None:
    """Why a pod ended before the run could begin, by its last words; None where it has saved and left."""
    status = pod["status"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode", 0) == 0:
            continue
        lines = [line.strip() for line in str(ended.get("message") or "").splitlines() if line.strip()]
        if ended.get("exitCode") in GENTLE_CODES:
            return None
        said = lines[-1] if lines else f"exit code {ended.get('exitCode')}"
        word = ended.get("reason") or "Error"
        remedy, permanent = remedy_of(said)
        return PendingReason(
            word=word, said=f"its pods end as they start: {tidy(said)[-300:]}", remedy=remedy, permanent=permanent
        )
    said = status.get("message") or ""
    return reason(status.get("reason") or "Failed", said) if said else None


def reason_of_events(events: Sequence[Object]) -> PendingReason | None:
    """What warnings about a Job or a pod say: first what no waiting mends, then the newest."""
    newest_first = sorted((e for e in events if PASSING not in (e.get("message") or "")), key=_last_seen, reverse=True)
    found = [reason(e.get("reason") or "Warning", e.get("message") or "") for e in newest_first]
    return min(found, key=lambda each: not each.permanent, default=None)


def workload_reason(workload: Object) -> PendingReason | None:
    """Why Kueue does not admit a workload, in its own words."""
    conditions = {each["type"]: each for each in (workload.get("status") or {}).get("conditions") or []}
    for kind in ("QuotaReserved", "Admitted"):
        condition = conditions.get(kind)
        if condition and condition["status"] == "False":
            said = tidy(condition.get("message") or "it waits for quota")
            permanent = condition.get("reason") == "Inadmissible" and "doesn't exist" in said
            remedy = "correct queue in the cluster's profile" if permanent else ""
            return PendingReason(word=condition.get("reason") or kind, said=f"queue {_queue(workload)}: {said}", remedy=remedy)
    return (
        None
        if "QuotaReserved" in conditions
        else PendingReason(word="Queued", said=f"queue {_queue(workload)} has not looked at it")
    )


def _queue(workload: Object) -> str:
    return str((workload.get("spec") or {}).get("queueName"))


def tidy(said: str) -> str:
    """A sentence of Kubernetes in one line, without what only a debugger of Kubernetes reads."""
    said = " ".join(said.split())
    said = re.sub(r"\(Error code .*?\)|rpc error: code = \w+ desc = ", "", said)
    said = re.sub(r"failed to create containerd task: .*: (exec: .*)$", r"\1", said)
    said = re.sub(r" ?preemption: 0/\d+ nodes are available:.*$", "", said)
    said = re.sub(r'^(Error creating: )?(pods|jobs\.batch) "([^"]+)" is forbidden: ', "", said)
    return said.strip().removesuffix("no new claims to deallocate,").strip().rstrip(".")


def _last_seen(event: Object) -> str:
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or (event.get("metadata") or {}).get("creationTimestamp") or ""
    )
