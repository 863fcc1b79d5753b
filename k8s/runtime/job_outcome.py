"""The end of a run as Kubernetes learns it, on the run's Job and by its pods' exit codes; and why Kubernetes ends pods."""

import json
import logging
import time
from dataclasses import asdict

from ropewalk.cluster.backends.submission import submission_details
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, StopReason
from ropewalk.k8s.api.client import ApiAwayError, ApiError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.names import OUTCOME_ANNOTATION
from ropewalk.k8s.runtime.pod_status import disruption_reason
from ropewalk.k8s.runtime.timings import OUTCOME_PATIENCE_SECONDS, OUTCOME_RETRY_SECONDS

log = logging.getLogger(__name__)

LONGEST_RESULTS = 32 * 1024  # bytes of an annotation


def publish_outcome(api: InClusterApi, outcome: Outcome) -> None:
    """Write the outcome on the Job, for those who cannot see the run's directory; a run that failed makes a Job that failed."""
    plain = asdict(outcome)
    if len(json.dumps(plain, default=str)) > LONGEST_RESULTS:
        plain["results"] = None
    patch: dict[str, object] = {"metadata": {"annotations": {OUTCOME_ANNOTATION: json.dumps(plain, default=str)}}}
    if outcome.state.failed:
        patch["spec"] = {"backoffLimit": 0}  # the first pod that ends now ends the Job
    deadline = time.monotonic() + OUTCOME_PATIENCE_SECONDS
    while True:
        try:
            if api.job() is not None:
                api.patch_job(patch)
            return
        except ApiError as error:
            log.warning("cannot write the outcome on the run's Job: %s", error)
            if not isinstance(error, ApiAwayError) or time.monotonic() > deadline:
                return
        time.sleep(OUTCOME_RETRY_SECONDS)


def pod_code(outcome: Outcome) -> int:
    """The exit code of all pods of a run that is over."""
    if not outcome.state.failed:
        return EXIT_DONE
    return EXIT_NEVER_RETRY if outcome.exit_code == EXIT_NEVER_RETRY else EXIT_FAILED


def query_stop_reason(api: InClusterApi, run: RunDir, pod: str) -> str:
    """Ask Kubernetes why a pod of the run has to go. Where a person has deleted the Job, the run counts as cancelled."""
    try:
        why = disruption_reason(api.pod(pod), api.job())
    except ApiError as error:
        log.warning("cannot ask Kubernetes why pod %s has to go: %s", pod, error)
        return "signal"
    if why == StopReason.CANCELLED and submission_details(run).get("name") == api.job_name:
        run.request_cancel()  # for those who look at the run and not at its Job, such as a sweep's driver
    return why
