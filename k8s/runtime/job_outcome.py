"""The end of a run, told to Kubernetes: on its Job, and by the exit codes of its pods. And why its pods have to end."""

import json
import logging
import time
from dataclasses import asdict

from cluster.backends.submission import submission_details
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY
from cluster.run.directory import RunDir
from cluster.spec import Outcome, RunState, StopReason
from k8s.api.client import ApiAwayError, ApiError
from k8s.api.in_cluster import InClusterApi
from k8s.names import OUTCOME_ANNOTATION
from k8s.runtime.pod_status import why_taken

log = logging.getLogger(__name__)

TELL_SECONDS = 120.0  # how long an API server that is away is waited for
TELL_PAUSE_SECONDS = 1.0
LONGEST_RESULTS = 32 * 1024  # bytes of an annotation


def tell_the_end(api: InClusterApi, outcome: Outcome) -> None:
    """Write the outcome on the Job, for whoever cannot see the run's directory; a run that failed makes a Job that failed."""
    plain = asdict(outcome)
    if len(json.dumps(plain, default=str)) > LONGEST_RESULTS:
        plain["results"] = None
    patch: dict[str, object] = {"metadata": {"annotations": {OUTCOME_ANNOTATION: json.dumps(plain, default=str)}}}
    if outcome.state is RunState.FAILED:
        patch["spec"] = {"backoffLimit": 0}  # the first pod that ends now ends the Job
    deadline = time.monotonic() + TELL_SECONDS
    while True:
        try:
            if api.job() is not None:
                api.patch_job(patch)
            return
        except ApiError as error:
            log.warning("cannot write the run's end on its Job: %s", error)
            if not isinstance(error, ApiAwayError) or time.monotonic() > deadline:
                return
        time.sleep(TELL_PAUSE_SECONDS)


def pod_code(outcome: Outcome) -> int:
    """The exit code of the pods of a run that is over."""
    if outcome.state is not RunState.FAILED:
        return EXIT_DONE
    return EXIT_NEVER_RETRY if outcome.exit_code == EXIT_NEVER_RETRY else EXIT_FAILED


def ask_why(api: InClusterApi, run: RunDir, pod: str) -> str:
    """Why a pod of the run has to go, in Kubernetes' words. Where a person has ended the run, its directory then says so too."""
    try:
        why = why_taken(api.pod(pod), api.job())
    except ApiError as error:
        log.warning("cannot ask Kubernetes why: %s", error)
        return "signal"
    if why == StopReason.CANCELLED and submission_details(run).get("name") == api.job_name:
        run.request_cancel()  # for whoever looks at the run and not at its Job, such as a sweep's driver
    return why
