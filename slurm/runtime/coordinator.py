"""The process that supervises a run inside its Slurm job, started by the job script in the run's directory.

Usage: python -m ropewalk.slurm.runtime.coordinator RUN_DIR
Exit codes: 0 done (or nothing to do), 1 failed for good, 85 requeue, 86 leave: Slurm requeues the job itself.
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
from ropewalk.cluster.process.signals import install_stop_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.files import write_atomically
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.cluster.supervise.supervisor import Supervisor, open_attempt
from ropewalk.slurm.batch.script import extra_node_name, skip_delay_name
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.job_lookup import OWNER, job_name, state_of, this_job
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.runtime.allocation import SlurmAllocation
from ropewalk.slurm.runtime.preemption import slurm_requeues

log = logging.getLogger(__name__)

EXIT_SLURM_REQUEUES = 86  # to the job script only, which leaves with 85 all the same
EMPTY_SECONDS, LOOK_SECONDS = 10.0, 0.2  # how long, and how often, a file that has no owner's name yet is looked at
DIED = "its coordinator died: the first node was lost, or Slurm took the job away without notice"


def coordinate(run: RunDir, slurm: Slurm) -> int:
    """Run the attempts of a run on this job's nodes; the exit code for the job script."""
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    me = this_job(os.environ)
    if not take_ownership(run, me, slurm):
        return EXIT_DONE
    number = open_attempt(run, DIED, restarts=restarts)
    if number is None:
        return exit_code_of(run)
    if "key" not in run.attempt_details(number):
        return never_confirmed(run, number)
    tidy(slurm, job)
    hosts = slurm.hosts(os.environ["SLURM_JOB_NODELIST"])
    run.describe_attempt(number, handle=f"slurm:{me}", hosts=hosts, restarts=restarts, started=time.time())
    details = run.attempt_details(number)
    profile = SlurmProfile.model_validate(details.get("profile") or {})
    allocation = SlurmAllocation(run, run.resources(number), profile, slurm, job=job, hosts=hosts)
    install_stop_handler(allocation.asked_to_stop.set)
    try:
        code = Supervisor(run, allocation, python_of(profile)).supervise(number)
    finally:
        allocation.close()
    if code != EXIT_REQUEUE:
        return exit_code_of(run)
    return EXIT_SLURM_REQUEUES if slurm_requeues(slurm, job) else EXIT_REQUEUE


def never_confirmed(run: RunDir, number: int) -> int:
    """End a run whose submission was cut short by a power cut: nobody was told of it, and what it asked for is gone."""
    cause = f"attempt.json was lost in a power cut during the submission; `ropewalk resume {run.id}` submits it again"
    run.write_outcome(number, Outcome(state=RunState.FAILED, exit_code=EXIT_FAILED, cause=cause, ended=time.time()))
    return EXIT_FAILED


def exit_code_of(run: RunDir) -> int:
    """The exit code of a run that is over: whoever waits for it in Slurm may start only if it has succeeded."""
    outcome = run.last_outcome()
    return EXIT_DONE if outcome is not None and outcome.state is RunState.SUCCEEDED else EXIT_FAILED


def python_of(profile: SlurmProfile) -> str:
    """The Python that a profile's agents run with."""
    return profile.python or ("python" if profile.container else sys.executable)


def take_ownership(run: RunDir, job: str, slurm: Slurm) -> bool:
    """Make this job the owner of the newest submission, unless another is: a retried sbatch may have made two jobs."""
    path = run.attempt_dir(newest_submission(run)[0]) / OWNER
    if not create_whole(path, job):
        owner = _owner_of(path)
        if owner not in ("", job) and _lives(run, owner, slurm):  # empty: what a crash left
            log.error("job %s owns this submission; leaving it alone", owner)
            return False
        write_atomically(path, job)
    return True


def _owner_of(path: Path) -> str:
    """The job that has created the file; without hard links it is empty until that has written its name, or has crashed."""
    deadline = time.monotonic() + EMPTY_SECONDS
    while not (owner := path.read_text()) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return owner


def _lives(run: RunDir, owner: str, slurm: Slurm) -> bool:
    """Whether the job that owns the run is still there; in doubt it is."""
    try:
        return any(job.id == owner and not state_of(job).final for job in slurm.named(job_name(run)))
    except BackendError as error:
        log.warning("cannot ask Slurm for job %s: %s", owner, error)
        return True


def tidy(slurm: Slurm, job: str) -> None:
    """Cancel what an earlier attempt of this job left in the queue: extra nodes, a job that ends this one's wait."""
    for name in (extra_node_name(job), skip_delay_name(job)):
        try:
            slurm.cancel(f"--name={name}", f"--user={os.environ.get('SLURM_JOB_USER') or os.geteuid()}")
        except BackendError as error:
            log.warning("%s may still be queued: %s", name, error)


def main() -> None:
    """Coordinate the run whose directory is named, and leave with its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging("coordinator")
    install_stop_handler(lambda: sys.exit(EXIT_REQUEUE))  # until the run is known a stop means: leave
    sys.exit(coordinate(run, Slurm()))


if __name__ == "__main__":
    main()
