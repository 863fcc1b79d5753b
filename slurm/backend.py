"""The Slurm backend: submits job scripts, exactly once, and reads what Slurm says of them in one question."""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ropewalk.cluster.backends.base import Backend, BackendState, Check, Profile
from ropewalk.cluster.backends.recovery import conclude, last_known
from ropewalk.cluster.backends.submission import key_of, next_attempt, open_attempts, open_dependencies, refuse_active
from ropewalk.cluster.config import Resources
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import BackendError, ConfigError, SubmissionInDoubtError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import SYNC_THREADS, syncing, write_atomically
from ropewalk.cluster.spec import RunState
from ropewalk.cluster.supervise.supervisor import close_unfinished_attempt
from ropewalk.slurm.batch.script import ARRAY_LIST, job_options, render_job
from ropewalk.slurm.commands import Job, Slurm
from ropewalk.slurm.job_lookup import SUBMITTED, job_id, job_name, jobs_of, state_of, waits
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.status.run_state import run_state
from ropewalk.slurm.submission.submit import submit_once

QUEUE_SECONDS = 10.0  # a person waits for the answer
LEAVING_SECONDS = 15.0  # from an attempt's end until its job is in the queue again
LEAVING_PAUSE_SECONDS = 0.5


class SlurmBackend(Backend):
    """A Slurm cluster, seen from a machine that has its commands."""

    ships_code = True

    def __init__(self, profile: Profile, slurm: Slurm | None = None) -> None:
        super().__init__(profile)
        self.profile = load_section(SlurmProfile, profile.options, f"cluster {profile.name!r}")
        self.slurm = slurm or Slurm()

    # --- submitting

    def render(self, run: RunDir, resources: Resources) -> str:
        """The job script of a run."""
        return render_job(run, resources, self.profile)

    def render_many(self, runs: Sequence[RunDir], resources: Resources) -> str:
        """The job script of an array of runs."""
        return render_job(runs[0], resources, self.profile, runs=len(runs))

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Submit the run's next attempt. Raises AlreadyRunningError if a job of an earlier submission is active."""
        if run.attempts():
            refuse_active(run, lambda: self._active_job(run))
            close_unfinished_attempt(run, "its job was lost before it could say how it ended")
        return self.submit_many([run], resources, after)[0]

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Submit many runs as one array; at most `at_once` of them run at a time."""
        head, array = runs[0], len(runs) > 1
        number = next_attempt(head)
        script = render_job(head, resources, self.profile, number, len(runs))
        options = [*job_options(head, resources, self.profile, number, len(runs)), *self._dependency(head, after)]
        details = {
            "backend": "slurm",
            "key": key_of(head, number),
            "profile": self.profile.model_dump(mode="json", exclude_defaults=True),
            "after": list(after),
        }
        own = [{**details, "index": i if array else None} for i in range(len(runs))]
        open_attempts(runs, resources, own, number, durable=False)
        head.log_dir(number).mkdir()  # Slurm itself writes the script's log; the coordinator makes the rest
        place = head.attempt_dir(number)
        (place / "job.sbatch").write_text(script)  # Slurm takes a copy, so that nothing depends on this one
        if array:
            write_atomically(place / ARRAY_LIST, "".join(f"{run.id}\n" for run in runs))
            options.append(f"--array=0-{len(runs) - 1}{f'%{at_once}' if at_once else ''}")
        where = head.path.parent if array else head.path
        try:
            with syncing([run.attempt_dir(number) / "attempt.json" for run in runs]):  # Slurm takes as long as the disk
                job = submit_once(self.slurm, place / "job.sbatch", where, key=key_of(head, number), options=options)
        except SubmissionInDoubtError:
            raise
        except BackendError as error:
            for run in runs:
                conclude(run, RunState.FAILED, f"never started: {error}")
            raise
        (place / SUBMITTED).write_text(job)  # need not outlive a power cut: the key finds the job without it
        return [f"slurm:{job}_{i}" for i in range(len(runs))] if array else [f"slurm:{job}"]

    def _active_job(self, run: RunDir) -> str:
        job = self._jobs([run]).get(run.id)
        return f"an active job (slurm:{job.id})" if job is not None and not state_of(job).final else ""

    def _dependency(self, head: RunDir, after: Sequence[str]) -> list[str]:
        """Options by which Slurm starts the run when those `after` have succeeded, and drops it when one no longer can."""
        waiting = open_dependencies(head, after)
        if not waiting:
            return []
        jobs = self._jobs(waiting)
        missing = [other.id for other in waiting if other.id not in jobs]
        if missing:
            raise ConfigError(
                f"--after {missing[0]}: there is no job of it on this cluster; a run can only wait for runs of its own cluster"
            )
        ids = ":".join(jobs[other.id].id for other in waiting)
        return [f"--dependency=afterok:{ids}", "--kill-on-invalid-dep=yes"]

    # --- asking

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Ask squeue once for all runs, and sacct if it has forgotten any; where Slurm does not answer, read the runs' files."""
        try:
            jobs = self._jobs(runs)
        except BackendError as error:
            return {run.id: last_known(run, str(error)) for run in runs}
        accounted = self._accounted([run for run in runs if run.id not in jobs])

        def told(run: RunDir) -> BackendState:
            return run_state(run, jobs.get(run.id), accounted.get(run.id))

        over = [run for run in runs if run.id not in jobs or state_of(jobs[run.id]).final]
        with ThreadPoolExecutor(SYNC_THREADS) as pool:  # to write an end down takes as long as a disk takes
            ends = dict(zip([run.id for run in over], pool.map(told, over), strict=True))
        return {run.id: ends.get(run.id) or told(run) for run in runs}

    def _jobs(self, runs: Sequence[RunDir]) -> dict[str, Job]:
        """The job of each run, in one question about the jobs of all users who own one: a user may look at another's runs."""
        users = sorted({os.geteuid(), *(run.path.stat().st_uid for run in runs)})
        return jobs_of(runs, self.slurm.queue(f"--user={','.join(map(str, users))}", seconds=QUEUE_SECONDS))

    def _accounted(self, runs: Sequence[RunDir]) -> dict[str, str]:
        """What accounting, if there is any, says of jobs that the controller has forgotten."""
        ids = {run.id: (job_id(run), job_name(run)) for run in runs if run.last_outcome() is None}
        asked = sorted({job.partition("_")[0] for job, _ in ids.values() if job})
        states = self.slurm.accounted(asked) if asked else {}
        # an id may have been given to another job since, so the name must be right too
        return {run: states[job][1] for run, (job, name) in ids.items() if job in states and states[job][0] == name}

    # --- the rest

    def way_to(self, run: RunDir, node: str, port: int) -> str:
        """The ssh that makes a port of a node a port of this machine."""
        return "" if node == os.uname().nodename else f"ssh -N -L {port}:127.0.0.1:{port} {node}"

    def cancel(self, run: RunDir) -> None:
        """Tell a run at work to save and leave; take one that waits out of the queue."""
        self.cancel_many([run])

    def cancel_many(self, runs: Sequence[RunDir]) -> None:
        """Cancel many runs in few commands."""
        for run in runs:
            run.request_cancel()
        deadline = time.monotonic() + LEAVING_SECONDS
        while True:
            jobs = self._jobs(runs)
            if waiting := [job.id for job in jobs.values() if waits(job)]:
                # one that starts just now finds the request in its directory, as those at work do
                self.slurm.cancel("--state=PENDING", *waiting)
            leaving = [run for run in runs if run.id in jobs and not waits(jobs[run.id]) and _between_attempts(run)]
            if not leaving or time.monotonic() > deadline:
                break
            time.sleep(LEAVING_PAUSE_SECONDS)
        self.states(runs)  # writes down how those ended that waited

    def checks(self) -> list[Check]:
        """What `doctor` prints of this cluster."""
        from ropewalk.slurm.status.doctor import checks  # noqa: PLC0415 - only doctor needs it

        return checks(self.slurm, self.profile)

    def resources_notice(self, resources: Resources) -> str:
        """That nodes with GPUs would have one core each."""
        from ropewalk.slurm.status.cores import cores_notice  # noqa: PLC0415 - only a submission by a person needs it

        return cores_notice(self.slurm, self.profile, resources)

    def start_estimate(self, run: RunDir, resources: Resources) -> str:
        """Whether the run would wait, why, and what smaller request would start sooner; one sentence."""
        from ropewalk.slurm.status.start_estimate import start_estimate  # noqa: PLC0415 - only a dry run needs it

        return start_estimate(self.slurm, run, resources, self.profile)


def _between_attempts(run: RunDir) -> bool:
    """Whether an attempt has ended and the next is to come."""
    outcome = run.last_outcome()
    return outcome is not None and not outcome.state.final
