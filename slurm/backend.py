"""The Slurm backend: submits each run as exactly one job, and reads the states of many runs with one query."""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from ropewalk.cluster.backends.base import Backend, BackendState, Check, GpuSupply, NodeProgram, Profile, Waiting
from ropewalk.cluster.backends.recovery import record_missing_outcome, state_from_files
from ropewalk.cluster.backends.submission import (
    Condition,
    next_attempt,
    open_attempts,
    open_dependencies,
    refuse_active,
    submission_key,
)
from ropewalk.cluster.config import Packages, Resources
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import BackendError, ConfigError, SubmissionInDoubtError
from ropewalk.cluster.process.scratch import scratch
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import SYNC_THREADS, syncing, write_atomically
from ropewalk.cluster.run.node_ledger import avoided, bad_nodes
from ropewalk.cluster.spec import RunState
from ropewalk.cluster.supervise.supervisor import close_unfinished_attempt
from ropewalk.slurm import cluster_info
from ropewalk.slurm.batch.script import ARRAY_LIST, job_options, render_job
from ropewalk.slurm.batch.shell import step_command
from ropewalk.slurm.commands import Job, Slurm
from ropewalk.slurm.job_lookup import SUBMITTED, is_waiting, job_id, job_name, jobs_of, state_of
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.status.run_state import run_state
from ropewalk.slurm.submission.capacity import array_size, refuse_excess
from ropewalk.slurm.submission.submit import submit_once

QUEUE_SECONDS = 10.0  # someone at a terminal waits for the answer
LEAVING_SECONDS = 15.0  # from an attempt's end until its job is in the queue again
LEAVING_PAUSE_SECONDS = 0.5
DEPENDENCY_TYPES = {Condition.OK: "afterok", Condition.ANY: "afterany", Condition.FAILED: "afternotok"}  # sbatch's names


class SlurmBackend(Backend):
    """A Slurm cluster, reached from a machine that has Slurm's commands."""

    ships_code = True

    def __init__(self, profile: Profile, slurm: Slurm | None = None) -> None:
        super().__init__(profile)
        self.profile = load_section(SlurmProfile, profile.options, f"cluster {profile.name!r}")
        if self.profile.host is not None:
            raise ConfigError(
                f"cluster {profile.name!r}: its runs are on {self.profile.host}, which only commands reach: `ropewalk ... --on"
                f" {profile.name}`"
            )
        self.slurm = slurm or Slurm()

    # --- submitting

    def render(self, run: RunDir, resources: Resources) -> str:
        return render_job(run, resources, self.profile)

    def render_many(self, runs: Sequence[RunDir], resources: Resources) -> str:
        return render_job(runs[0], resources, self.profile, runs=len(runs))

    @property
    def mounts(self) -> Mapping[str, str]:
        return self.profile.mounts

    def packages(self, wanted: Packages | None) -> Packages | None:
        return wanted or self.profile.packages

    def check_feasible(self, run: RunDir, resources: Resources) -> None:
        """Raise ConfigError if Slurm would refuse the run's job."""
        with scratch("o") as folder:
            (script := folder / "job.sbatch").write_text(render_job(run, resources, self.profile))
            if refusal := self.slurm.test_only(script).refusal:
                raise ConfigError(f"cluster {self.cluster.name!r} would refuse the run: {refusal}")

    def check_capacity(self, runs: int) -> None:
        """Raise ConfigError if the queue has no room for this many runs."""
        if runs > 1:
            refuse_excess(self.slurm, self._settings, self.profile.options, runs)

    @cached_property
    def _settings(self) -> Mapping[str, str]:
        return cluster_info.settings(self.slurm)

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        if run.attempts():
            refuse_active(run, lambda: self._active_job(run))
            close_unfinished_attempt(run, "its job was lost before it reported an outcome")
        return self.submit_many([run], resources, after)[0]

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Submit many runs as few job arrays. With `at_once` each array starts after the one before has ended.

        If Slurm refuses an array, the runs of those before it are cancelled.
        """
        number = next_attempt(runs[0])  # before Slurm is asked anything: another submission that is faster takes the number
        size = array_size(self._settings) if len(runs) > 1 else 1
        handles: list[str] = []
        waits = self._dependency(runs[0], after)
        for first in range(0, len(runs), size):
            ended = [f"afterany:{handles[-1].partition(':')[2].partition('_')[0]}"] if at_once and handles else []
            try:
                handles += self._submit_array(
                    *(runs[first : first + size], number, resources), after=after, waits=[*waits, *ended], at_once=at_once
                )
            except SubmissionInDoubtError:
                raise
            except BackendError:
                if first:
                    self.cancel_many(runs[:first])
                raise
        return handles

    def _submit_array(
        self,
        runs: Sequence[RunDir],
        number: int,
        resources: Resources,
        *,
        after: Sequence[str],
        waits: Sequence[str],
        at_once: int | None,
    ) -> list[str]:
        """Submit runs as one job, which is an array unless there is a single run. `waits`: dependencies in sbatch's form."""
        head, array = runs[0], len(runs) > 1
        profile = self._with_avoided(head.path.parent)
        script = render_job(head, resources, profile, number, len(runs))
        options = job_options(head, resources, profile, number, len(runs))
        if waits:
            options += [f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"]
        details = {
            "backend": "slurm",
            "key": submission_key(head, number),
            "profile": self.profile.model_dump(mode="json", exclude_defaults=True),
            "after": list(after),
        }
        details_of_runs = [{**details, "index": i if array else None} for i in range(len(runs))]
        open_attempts(runs, resources, details_of_runs, number, durable=False)
        head.log_dir(number).mkdir()  # Slurm writes the script's log there; the coordinator creates the other directories
        attempt_dir = head.attempt_dir(number)
        (attempt_dir / "job.sbatch").write_text(script)  # for people: sbatch keeps a copy of its own
        if array:
            write_atomically(attempt_dir / ARRAY_LIST, "".join(f"{run.id}\n" for run in runs))
            options.append(f"--array=0-{len(runs) - 1}{f'%{at_once}' if at_once else ''}")
        workdir = head.path.parent if array else head.path
        try:
            with syncing([run.attempt_dir(number) / "attempt.json" for run in runs]):  # fsync while sbatch runs
                job = submit_once(
                    self.slurm, attempt_dir / "job.sbatch", workdir, key=submission_key(head, number), options=options
                )
        except SubmissionInDoubtError:
            raise
        except BackendError as error:
            for run in runs:
                record_missing_outcome(run, RunState.FAILED, f"never started: {error}")
            raise
        (attempt_dir / SUBMITTED).write_text(job)  # not synced: without this file the job is found by its key
        return [f"slurm:{job}_{i}" for i in range(len(runs))] if array else [f"slurm:{job}"]

    def _with_avoided(self, root: Path) -> SlurmProfile:
        """Return the profile with the machines that new runs avoid."""
        names = [*([self.profile.exclude] if self.profile.exclude else []), *self.avoided_nodes(root)]
        return self.profile.model_copy(update={"exclude": ",".join(names)}) if names else self.profile

    def avoided_nodes(self, root: Path) -> Sequence[str]:
        """Return the machines to avoid: of each partition of the profile at most a tenth. Slurm is asked if any has failed."""
        bad = bad_nodes(self.failures(root), time.time())
        if not bad or self.profile.reservation is not None:
            return ()
        try:
            names = [partition.name for partition in cluster_info.used_partitions(self.slurm, self.profile.partition)]
            by_partition = [[node.name for node in cluster_info.nodes(self.slurm, name)] for name in names]
        except BackendError:
            return ()
        return sorted({node for nodes in by_partition for node in avoided(bad, nodes)})

    def _active_job(self, run: RunDir) -> str:
        job = self._jobs([run]).get(run.id)
        return f"an active job (slurm:{job.id})" if job is not None and not state_of(job).final else ""

    def _dependency(self, head: RunDir, after: Sequence[str]) -> list[str]:
        """Return the runs `after` that have not ended as a dependency of sbatch."""
        waiting = open_dependencies(head, after)
        if not waiting:
            return []
        jobs = self._jobs([other.run for other in waiting])
        missing = [other.run.id for other in waiting if other.run.id not in jobs]
        if missing:
            raise ConfigError(
                f"--after {missing[0]}: it has no job on this cluster; a run can only wait for runs on its own cluster"
            )
        return [f"{DEPENDENCY_TYPES[other.condition]}:{jobs[other.run.id].id}" for other in waiting]

    # --- queries

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Query squeue once for all runs, and sacct for jobs that it no longer lists; without an answer use the runs' files."""
        try:
            jobs = self._jobs(runs)
        except BackendError as error:
            return {run.id: state_from_files(run, str(error)) for run in runs}
        accounted = self._accounted([run for run in runs if run.id not in jobs])

        def state(run: RunDir) -> BackendState:
            return run_state(run, jobs.get(run.id), accounted.get(run.id))

        over = [run for run in runs if run.id not in jobs or state_of(jobs[run.id]).final]
        with ThreadPoolExecutor(SYNC_THREADS) as pool:  # each final state is written and synced: overlap the disk waits
            ends = dict(zip([run.id for run in over], pool.map(state, over), strict=True))
        return {run.id: ends.get(run.id) or state(run) for run in runs}

    def _jobs(self, runs: Sequence[RunDir]) -> dict[str, Job]:
        """Return the job of each run with one squeue query. Includes jobs of other users who own one of the runs."""
        users = sorted({os.geteuid(), *(run.path.stat().st_uid for run in runs)})
        return jobs_of(runs, self.slurm.queue(f"--user={','.join(map(str, users))}", seconds=QUEUE_SECONDS))

    def _accounted(self, runs: Sequence[RunDir]) -> dict[str, str]:
        """Return the state in accounting, if the cluster has it, of jobs that the controller has forgotten."""
        jobs = {run.id: (job_id(run), job_name(run)) for run in runs if run.last_outcome() is None}
        ids = sorted({job.partition("_")[0] for job, _ in jobs.values() if job})
        states = self.slurm.accounting_states(ids) if ids else {}
        # Slurm reuses ids, so the name must match too
        return {run: states[job][1] for run, (job, name) in jobs.items() if job in states and states[job][0] == name}

    # --- other operations

    def tunnel_command(self, run: RunDir, node: str, port: int, local_port: int) -> str:
        if node == os.uname().nodename:
            return ""
        return f"ssh -N -o ExitOnForwardFailure=yes -L 127.0.0.1:{local_port}:127.0.0.1:{port} {node}"

    def shell_command(self, run: RunDir, program: NodeProgram) -> list[str]:
        job = self._jobs([run]).get(run.id)
        if job is None:
            raise ConfigError(f"{run.id} has no job on cluster {self.cluster.name!r}")
        return step_command(run, self.profile, job.id, program)

    def explain_waiting(self, run: RunDir) -> Waiting:
        from ropewalk.slurm.status.waiting import explain_waiting  # noqa: PLC0415 - only `why` needs it

        number = run.attempts()[-1]
        resources = Resources.model_validate(run.attempt_details(number).get("resources") or run.record["resources"])
        try:
            job = self._waiting_job(run)
        except (BackendError, ConfigError):
            return Waiting()
        return explain_waiting(self.slurm, job, resources, self.profile, run.attempt_dir(number) / "job.sbatch")

    def _waiting_job(self, run: RunDir) -> str:
        job = self._jobs([run]).get(run.id)
        if job is None or not is_waiting(job):
            raise ConfigError(f"{run.id} does not wait in the queue: `ropewalk why {run.id}`")
        return job.id

    def hold(self, run: RunDir) -> None:
        self.slurm.ask("scontrol", "uhold", self._waiting_job(run))  # `hold` by an operator could not be released by the user

    def release(self, run: RunDir) -> None:
        self.slurm.ask("scontrol", "release", self._waiting_job(run))

    def lower_priority(self, run: RunDir, amount: int) -> None:
        self.slurm.update(self._waiting_job(run), Nice=str(amount))

    def cancel(self, run: RunDir) -> None:
        self.cancel_many([run])

    def cancel_many(self, runs: Sequence[RunDir]) -> None:
        for run in runs:
            run.request_cancel()
        deadline = time.monotonic() + LEAVING_SECONDS
        while True:
            jobs = self._jobs(runs)
            if waiting := [job.id for job in jobs.values() if is_waiting(job)]:
                # a job that starts right now reads the request from its run directory, as running jobs do
                self.slurm.cancel("--state=PENDING", *waiting)
            leaving = [run for run in runs if run.id in jobs and not is_waiting(jobs[run.id]) and _between_attempts(run)]
            if not leaving or time.monotonic() > deadline:
                break
            time.sleep(LEAVING_PAUSE_SECONDS)
        self.states(runs)  # records the outcome of runs that were still waiting

    def checks(self) -> list[Check]:
        from ropewalk.slurm.status.doctor import checks  # noqa: PLC0415 - only doctor needs it

        return checks(self.slurm, self.profile)

    def resources_notice(self, resources: Resources) -> str:
        """Warn if nodes with GPUs would get a single CPU core each."""
        from ropewalk.slurm.status.cores import cores_notice  # noqa: PLC0415 - only interactive submissions need it

        return cores_notice(self.slurm, self.profile, resources)

    def gpu_supply(self) -> GpuSupply:
        """Return the GPUs of the node of the profile's partitions that has most, from sinfo."""
        if self.profile.requests_gpus:
            return GpuSupply(per_node=0)
        names = [partition.name for partition in cluster_info.used_partitions(self.slurm, self.profile.partition)]
        counts = [node.gpus for name in names for node in cluster_info.nodes(self.slurm, name)]
        return GpuSupply(per_node=max(counts, default=0), owner=f"nodes of partition {', '.join(names)} have")

    def start_estimate(self, run: RunDir, resources: Resources) -> str:
        from ropewalk.slurm.status.start_estimate import start_estimate  # noqa: PLC0415 - only a dry run needs it

        return start_estimate(self.slurm, run, resources, self.profile)


def _between_attempts(run: RunDir) -> bool:
    """Return True if the run's last attempt has ended and another one will follow."""
    outcome = run.last_outcome()
    return outcome is not None and not outcome.state.final
