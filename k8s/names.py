"""Labels, annotations, variables and object names that submitter, pods and Kubernetes share."""

import hashlib

from ropewalk.cluster.backends.submission import submission_details
from ropewalk.cluster.run.directory import RunDir

# --- labels and annotations

COMMON_LABELS = {"app.kubernetes.io/name": "ropewalk", "app.kubernetes.io/managed-by": "ropewalk"}
COMMON_SELECTOR = ",".join(f"{key}={value}" for key, value in COMMON_LABELS.items())
RUN_LABEL = "ropewalk/run"
SUBMISSION_LABEL = "ropewalk/submission"  # number of the attempt that the submission opened
ROLE_LABEL = "ropewalk/role"  # run, gate (the release controller) or reader
KEY_ANNOTATION = "ropewalk/key"
OUTCOME_ANNOTATION = "ropewalk/outcome"
HOST_LABEL = "kubernetes.io/hostname"  # of a node
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
MIN_PARALLELISM_ANNOTATION = "kueue.x-k8s.io/job-min-parallelism"

# --- variables of a pod

JOB_VARIABLE = "ROPEWALK_JOB"  # name of the Job that the pod belongs to
# set by the manifest or Kubernetes; a profile must not set them
RESERVED_VARIABLES = frozenset({"PYTHONPATH", "ROPEWALK_RUNS", JOB_VARIABLE, "JOB_COMPLETION_INDEX"})

# --- objects

RELEASE_ENDING = "-gate"  # of the release controller's Job; manifests/admission-policy.yaml recognizes its pods by it
LONGEST_NAME = 54  # of 63, which leaves room for a pod's index and random suffix


def name_of(run_id: str, number: int, longest: int = LONGEST_NAME) -> str:
    """Return the name of a submission's objects: run id and attempt number, shortened if Kubernetes requires it."""
    ending = f"-{number}"
    if len(run_id) + len(ending) > longest:
        digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
        run_id = f"{run_id[: longest - len(ending) - 9].rstrip('-')}-{digest}"
    return f"{run_id}{ending}"


def release_name(head: RunDir, number: int) -> str:
    """Return the name of the Job that starts the held runs of a submission; `head` is the first of them.

    Short enough that the pods' names end in -gate-xxxxx, by which k8s/manifests/admission-policy.yaml recognizes them.
    """
    return f"{name_of(head.id, number, LONGEST_NAME - len(RELEASE_ENDING))}{RELEASE_ENDING}"


def labels_of(run: RunDir, number: int) -> dict[str, str]:
    """Return the labels of all objects of a submission, the attempt `number` of a run."""
    return {**COMMON_LABELS, RUN_LABEL: run.id, SUBMISSION_LABEL: str(number)}


def job_name_of(run: RunDir) -> str:
    """Return the name of the Job of a run's newest submission."""
    return str(submission_details(run).get("name"))
