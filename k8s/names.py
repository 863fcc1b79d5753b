"""Names that submitter, pods and Kubernetes share: labels, annotations, variables, and what a run's objects are called."""

import hashlib

from ropewalk.cluster.backends.submission import submission_details
from ropewalk.cluster.run.directory import RunDir

# --- labels and annotations

OURS = {"app.kubernetes.io/name": "ropewalk", "app.kubernetes.io/managed-by": "ropewalk"}
OUR_LABELS = ",".join(f"{key}={value}" for key, value in OURS.items())  # as a selector
RUN_LABEL = "ropewalk/run"
SUBMISSION_LABEL = "ropewalk/submission"  # the attempt that the submission opened
ROLE_LABEL = "ropewalk/role"  # run, gate (the release controller) or reader
KEY_ANNOTATION = "ropewalk/key"
OUTCOME_ANNOTATION = "ropewalk/outcome"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
LEAST_ANNOTATION = "kueue.x-k8s.io/job-min-parallelism"

# --- variables of a pod

JOB_VARIABLE = "ROPEWALK_JOB"  # the Job that the pod belongs to
# those that the manifest and Kubernetes set, and no profile may
OWN_VARIABLES = frozenset({"PYTHONPATH", "ROPEWALK_RUNS", JOB_VARIABLE, "JOB_COMPLETION_INDEX"})

# --- objects

RELEASE_ENDING = "-gate"  # of the release controller's Job; manifests/admission-policy.yaml knows its pods by it
LONGEST_NAME = 54  # of 63, so that a pod's index and more may follow


def name_of(run_id: str, number: int, longest: int = LONGEST_NAME) -> str:
    """The name of a submission's objects: the run's, cut where Kubernetes allows no longer one, and the attempt it opened."""
    ending = f"-{number}"
    if len(run_id) + len(ending) > longest:
        digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
        run_id = f"{run_id[: longest - len(ending) - 9].rstrip('-')}-{digest}"
    return f"{run_id}{ending}"


def release_name(head: RunDir, number: int) -> str:
    """The name of the Job that releases the runs of a submission, of which `head` is the first.

    It is short enough for its pods to end in -gate-xxxxx, by which k8s/manifests/admission-policy.yaml knows them.
    """
    return f"{name_of(head.id, number, LONGEST_NAME - len(RELEASE_ENDING))}{RELEASE_ENDING}"


def labels_of(run: RunDir, number: int) -> dict[str, str]:
    """The labels of everything that belongs to a submission, the attempt `number` of a run."""
    return {**OURS, RUN_LABEL: run.id, SUBMISSION_LABEL: str(number)}


def job_name_of(run: RunDir) -> str:
    """The name of the Job that the newest submission of a run has created."""
    return str(submission_details(run).get("name"))
