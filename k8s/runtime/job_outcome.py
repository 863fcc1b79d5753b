"""Reports the end of a run to Kubernetes, by its Job and the pods' exit codes; asks Kubernetes why it ends pods."""

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

LONGEST_RESULTS = 32 * 1024  # bytes; larger results are left out of the annotation


def publish_outcome(api: InClusterApi, outcome: Outcome) -> None:
    """Write the outcome to the Job, for machines without the run directory; after a failed run the Job fails as well."""
    record = asdict(outcome)
    if len(json.dumps(record, default=str)) > LONGEST_RESULTS:
        record["results"] = None
    patch: dict[str, object] = {"metadata": {"annotations": {OUTCOME_ANNOTATION: json.dumps(record, default=str)}}}
    if outcome.state.failed:
        patch["spec"] = {"backoffLimit": 0}  # the next pod that exits ends the Job
    deadline = time.monotonic() + OUTCOME_PATIENCE_SECONDS
    while True:
        try:
            if api.job() is not None:
                api.patch_job(patch)
            return
        except ApiError as error:
            log.warning("cannot write the outcome to the run's Job: %s", error)
            if not isinstance(error, ApiAwayError) or time.monotonic() > deadline:
                return
        time.sleep(OUTCOME_RETRY_SECONDS)


def pod_code(outcome: Outcome) -> int:
    """Return the exit code of all pods of a run that is over."""
    if not outcome.state.failed:
        return EXIT_DONE
    return EXIT_NEVER_RETRY if outcome.exit_code == EXIT_NEVER_RETRY else EXIT_FAILED


def query_stop_reason(api: InClusterApi, run: RunDir, pod: str) -> str:
    """Ask Kubernetes why a pod of the run is being deleted. If the Job was deleted by a user, the run counts as cancelled."""
    try:
        why = disruption_reason(api.pod(pod), api.job())
    except ApiError as error:
        log.warning("cannot ask Kubernetes why pod %s is being deleted: %s", pod, error)
        return "signal"
    if why == StopReason.CANCELLED and submission_details(run).get("name") == api.job_name:
        run.request_cancel()  # for processes that watch the run and not its Job, such as a sweep's driver
    return why
