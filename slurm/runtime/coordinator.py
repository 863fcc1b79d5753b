"""Supervises a run inside its Slurm job; the job script starts it in the run's directory.

Usage: python -m ropewalk.slurm.runtime.coordinator RUN_DIR
Exit codes: 0 done or nothing to do, 1 failed for good, 85 saved: requeue the job, 86 saved: Slurm requeues the job itself.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from ropewalk.cluster.backends.submission import newest_submission
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, BackendError
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.signals import SignalFlag, install_stop_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.cluster.supervise.supervisor import Supervisor, open_attempt
from ropewalk.slurm import cluster_info
from ropewalk.slurm.batch.script import extra_node_name, skip_delay_name
from ropewalk.slurm.batch.shell import python_of
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.job_lookup import OWNER, job_name, state_of, this_job
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.runtime.allocation import SlurmAllocation
from ropewalk.slurm.runtime.job_details import is_preempted

log = logging.getLogger(__name__)

EXIT_SLURM_REQUEUES = 86  # between coordinator and job script only; the script then exits with 85
EMPTY_SECONDS, POLL_SECONDS = 10.0, 0.2  # timeout and interval of waiting for the owner's id in an empty file
DIED = "its coordinator died: the first node was lost, or Slurm took the job away without notice"
DEFAULT_MAX_REQUEUES = "5"  # Slurm's default of MaxBatchRequeue


def coordinate(run: RunDir, slurm: Slurm, stop: SignalFlag) -> int:
    """Run the attempts of a run on this job's nodes; return the exit code for the job script.

    If `stop` is set before the first attempt begins, that attempt asks Slurm for the reason and ends, as any other would.
    """
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    own_id = this_job(os.environ)
    if not take_ownership(run, own_id, slurm):
        return EXIT_DONE
    number = open_attempt(run, DIED, restarts=restarts)
    if number is None:
        return exit_code_of(run)
    if "key" not in run.attempt_details(number):
        return fail_unconfirmed(run, number)
    cancel_leftover_jobs(slurm, job)
    hosts = slurm.hosts(os.environ["SLURM_JOB_NODELIST"])
    run.describe_attempt(number, handle=f"slurm:{own_id}", hosts=hosts, restarts=restarts, started=time.time())
    details = run.attempt_details(number)
    profile = SlurmProfile.model_validate(details.get("profile") or {})
    allocation = SlurmAllocation(run, run.resources(number), profile, slurm, job=job, hosts=hosts)
    allocation.stop_requested = stop
    try:
        code = Supervisor(run, allocation, python_of(profile)).supervise(number)
    finally:
        allocation.close()
    if code != EXIT_REQUEUE:
        return exit_code_of(run)
    return EXIT_SLURM_REQUEUES if slurm_requeues(slurm, job) else EXIT_REQUEUE


def fail_unconfirmed(run: RunDir, number: int) -> int:
    """Record the failure of a run whose submission was interrupted by a power failure, which lost the attempt's details."""
    cause = f"attempt.json was lost in a power failure during the submission; `ropewalk resume {run.id}` submits it again"
    run.write_outcome(number, Outcome(state=RunState.FAILED, exit_code=EXIT_FAILED, cause=cause, ended=time.time()))
    return EXIT_FAILED


def exit_code_of(run: RunDir) -> int:
    """Return the exit code of a run that is over: 0 only after success, since runs that depend on it may start then."""
    outcome = run.last_outcome()
    return EXIT_DONE if outcome is not None and outcome.state is RunState.SUCCEEDED else EXIT_FAILED


def take_ownership(run: RunDir, job: str, slurm: Slurm) -> bool:
    """Make this job the owner of the newest submission. Returns False if another live job is: a retried sbatch can make two."""
    path = run.attempt_dir(newest_submission(run)[0]) / OWNER
    if not create_whole(path, job):
        owner = _owner_of(path)
        if owner not in ("", job) and _is_active(run, owner, slurm):  # empty: written by a process that crashed
            log.error("job %s owns this submission; this job exits", owner)
            return False
        write_atomically(path, job)
    return True


def _owner_of(path: Path) -> str:
    """Return the id in an owner file. Without hard links the file is empty until its creator has written the id or crashed."""
    deadline = time.monotonic() + EMPTY_SECONDS
    while not (owner := path.read_text()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return owner


def _is_active(run: RunDir, owner: str, slurm: Slurm) -> bool:
    """Return True if the owning job has not ended, or if Slurm does not answer."""
    try:
        return any(job.id == owner and not state_of(job).final for job in slurm.jobs_named(job_name(run)))
    except BackendError as error:
        log.warning("cannot query job %s: %s", owner, error)
        return True


def cancel_leftover_jobs(slurm: Slurm, job: str) -> None:
    """Cancel small jobs of an earlier attempt that are still queued: additional nodes, the end of the requeue delay."""
    for name in (extra_node_name(job), skip_delay_name(job)):
        try:
            slurm.cancel(f"--name={name}", f"--user={os.environ.get('SLURM_JOB_USER') or os.geteuid()}")
        except BackendError as error:
            log.warning("%s may still be queued: %s", name, error)


def slurm_requeues(slurm: Slurm, job: str) -> bool:
    """Return True if Slurm requeues this job once its script exits; False if that cannot be determined.

    Slurm marks a job when it announces a preemption (GraceTime) and clears the mark only if it requeues the job itself. A job
    that requeues itself with `scontrol requeue` keeps the mark: when it finally completes, Slurm takes that for another
    preemption, queues the job again for all its nodes, and leaves `afterok` dependencies waiting (src/slurmctld, 24.11 to 26.05:
    GRACE_PREEMPT).
    """
    try:
        details = slurm.job_details(job)
        if details.get("JobState") != "RUNNING" or details.get("Requeue") != "1" or not is_preempted(details):
            return False
        settings = cluster_info.settings(slurm)
        return _has_requeues_left(details, settings) and "REQUEUE" in _preempt_mode(slurm, details, settings).upper()
    except (BackendError, ValueError, IndexError) as error:
        log.warning("cannot determine who requeues this job: %s", error)
        return False


def _has_requeues_left(details: dict[str, str], settings: dict[str, str]) -> bool:
    """Return True if Slurm may requeue the job once more. Beyond MaxBatchRequeue it holds the job instead.

    A requeue is reserved for the end of the job, in case the mark is still set then.
    """
    most = int(settings.get("MaxBatchRequeue", DEFAULT_MAX_REQUEUES).split()[0])
    return int(details.get("BatchFlag", DEFAULT_MAX_REQUEUES)) < most - 1


def _preempt_mode(slurm: Slurm, details: dict[str, str], settings: dict[str, str]) -> str:
    """Return the preemption mode that applies to the job: that of its partition or QoS, else the cluster's."""
    cluster, kind = settings.get("PreemptMode", "OFF"), settings.get("PreemptType", "")
    if kind.endswith("partition_prio"):
        modes = {partition.name: partition.preempt_mode for partition in cluster_info.partitions(slurm)}
        return modes.get(details.get("Partition", ""), "OFF")
    if kind.endswith("qos"):
        mode = cluster_info.preempt_mode_of_qos(slurm, details.get("QOS", ""))
        return cluster if mode.lower() in {"", "off", "cluster"} else mode
    return "OFF"


def main() -> None:
    """Coordinate the run in the given directory and exit with its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    run.refresh_changes()
    configure_logging("coordinator")
    stop = SignalFlag()
    install_stop_handler(stop.set)
    sys.exit(coordinate(run, Slurm(), stop))


if __name__ == "__main__":
    main()
