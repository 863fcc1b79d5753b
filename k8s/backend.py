"""The Kubernetes backend: submits Jobs, exactly once, and tells of any number of runs in one list call what the cluster says."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from ropewalk.cluster.backends.base import Backend, BackendState, Check, Profile
from ropewalk.cluster.backends.recovery import conclude, has_agents, last_known
from ropewalk.cluster.backends.submission import (
    key_of,
    named_beside,
    next_attempt,
    open_attempts,
    open_dependencies,
    refuse_active,
)
from ropewalk.cluster.config import Resources
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import BackendError, ConfigError, SubmissionInDoubtError
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import write_all
from ropewalk.cluster.spec import RunState
from ropewalk.cluster.supervise.supervisor import close_unfinished_attempt
from ropewalk.k8s.api.client import ApiAwayError, Kubernetes, NotFoundError
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.api.objects import end_of
from ropewalk.k8s.manifests.job import dump, render_job
from ropewalk.k8s.manifests.service import render_service, served_port, service_name
from ropewalk.k8s.names import job_name_of, name_of
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.observe import Observation, observe
from ropewalk.k8s.status.pending_reasons import with_remedy
from ropewalk.k8s.status.run_state import ended_unseen, handle_of, run_state
from ropewalk.k8s.status.settle import settle_run
from ropewalk.k8s.submission.hand_over import hand_over
from ropewalk.k8s.submission.preflight import refuse_the_impossible, refuse_without_rights
from ropewalk.k8s.submission.release_controller import HeldRuns, write_held
from ropewalk.k8s.submission.staging import stage
from ropewalk.k8s.submission.submit import THREADS, Submission, create_all, withdraw
from ropewalk.k8s.volume.reader import Reader

log = logging.getLogger(__name__)

CANNOT_WAIT = (
    "a run that waits for others is released by a pod, which needs a service account with the Role of k8s/manifests/rbac.yaml:"
    " apply that, and set service_account: ropewalk in the cluster's profile"
)


UNSUBMITTED_SECONDS = 900.0  # after it was written down a run is no longer about to be submitted


class K8sBackend(Backend):
    """A namespace of a Kubernetes cluster, seen from a laptop, or from a pod of it."""

    ships_code = True

    def __init__(self, profile: Profile, kube: Kubernetes | None = None) -> None:
        super().__init__(profile)
        self.profile = load_section(K8sProfile, profile.options, f"cluster {profile.name!r}")
        self._given = kube

    @cached_property
    def kube(self) -> Kubernetes:
        """The cluster; a dry run does not need one."""
        return self._given or connect(self.profile)

    @cached_property
    def reader(self) -> Reader:
        """Reads the volume, where this machine does not see it."""
        return Reader(self.kube, self.profile)

    @property
    def shares_files(self) -> bool:
        """Whether this machine sees the runs' volume: it mounts it, or is a pod itself."""
        return self.profile.runs is not None or os.environ.get(RUNS_VARIABLE) == self.profile.claim_path

    def path_here(self, path: str) -> Path | None:
        """Where this machine sees what pods call by a path; None where it lies on a volume that it does not see."""
        inside = Path(path)
        if not inside.is_relative_to(self.profile.claim_path):
            elsewhere = any(inside.is_relative_to(mount.path) for mount in self.profile.mounts) and not inside.exists()
            return None if elsewhere else inside
        if self.profile.runs is None:
            return inside if self.shares_files else None
        return Path(self.profile.runs).expanduser() / inside.relative_to(self.profile.claim_path)

    # --- submitting

    def check_waiting(self) -> None:
        """Raise ConfigError without a service account: nothing could release the runs then."""
        if self.profile.service_account is None:
            raise ConfigError(CANNOT_WAIT)

    def check_access(self) -> None:
        """Raise ConfigError where no kubeconfig leads to the cluster. Nothing is asked of the server."""
        _ = self.kube

    def render(self, run: RunDir, resources: Resources) -> str:
        """The manifest of the run's first attempt, as `kubectl apply -f -` takes it. Asks nobody and writes nothing."""
        service = render_service(run, self.profile, 1)
        return dump([render_job(run, resources, self.profile), *([service] if service is not None else [])])

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Submit the run's next attempt; its handle. Raises AlreadyRunningError if a Job of an earlier submission is active."""
        if run.attempts():
            refuse_active(run, lambda: self._active_job(run))
            self.sync(run)
            close_unfinished_attempt(run, "its pods were lost before they could say how it ended")
        return self.submit_many([run], resources, after)[0]

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Submit the next attempt of many runs, of which at most `at_once` run at a time; their handles, in order."""
        number = next_attempt(runs[0])
        others = self._still_open(runs[0], after)
        free = 0 if others else len(runs) if at_once is None else at_once  # so many need no release controller
        if free < len(runs):
            self.check_waiting()
        jobs = {run.id: render_job(run, resources, self.profile, number, held=i >= free) for i, run in enumerate(runs)}
        waits = {"after": others, "at_once": at_once}
        open_attempts(runs, resources, [{**self._details(run, number), **waits} for run in runs], number)
        write_all({run.attempt_dir(number) / "manifest.yaml": dump([jobs[run.id]]) for run in runs})
        if free < len(runs):
            ids = [run.id for run in runs]
            write_held(runs[0], HeldRuns(runs=ids, number=number, after=others, at_once=at_once, queue=self.profile.queue))
        if os.geteuid() == 0:
            hand_over(runs, number, self.profile.user)
        try:
            self._ask_first(resources)
            staged = {} if self.shares_files else stage(runs, number, jobs, self.reader.upload)
            wanted = Submission(runs=runs, number=number, jobs=jobs, staged=staged, held=free < len(runs))
            create_all(self.kube, self.profile, wanted)
        except SubmissionInDoubtError:
            raise
        except BackendError as error:
            said = with_remedy(str(error))
            withdraw(self.kube, runs, number)
            for run in runs:
                conclude(run, RunState.FAILED, f"never started: {said}")
            raise type(error)(said) from None
        return [str(run.attempt_details(number)["handle"]) for run in runs]

    def _still_open(self, head: RunDir, after: Sequence[str]) -> list[str]:
        """Of the runs that this one waits for, those that are not over. Raises ConfigError where one can never succeed."""
        if after and not self.shares_files:
            self.settle(named_beside(head, after))
        others = open_dependencies(head, after)
        for other in others:
            if not other.attempts():
                raise ConfigError(
                    f"--after {other.id}: it does not lie beside this run; a run can only wait for its own cluster's"
                )
        return [other.id for other in others]

    def _ask_first(self, resources: Resources) -> None:
        """Refuse what can never run, before anything is created; an API server that is away is a matter of the submission."""
        with suppress(ApiAwayError):
            refuse_the_impossible(self.kube, self.profile, resources)

    def check_rights(self) -> None:
        """Raise ConfigError where this process may not submit: before it has begun what it would submit for."""
        with suppress(ApiAwayError):
            refuse_without_rights(self.kube, self.profile)

    def _details(self, run: RunDir, number: int) -> dict[str, object]:
        """What a submission writes down of this run, beside its resources."""
        name, namespace = name_of(run.id, number), self.kube.namespace
        return {
            "backend": "k8s",
            "key": key_of(run, number),
            "name": name,
            "handle": f"k8s:{namespace}/{name}",
            "namespace": namespace,
            "profile": self.profile.model_dump(mode="json", exclude_defaults=True),
        }

    def _active_job(self, run: RunDir) -> str:
        """The Job of the run's newest submission, in words, if it is active; else nothing."""
        try:
            job = self.kube.get("Job", job_name_of(run))
        except NotFoundError:
            return ""
        active = end_of(job) is None and "deletionTimestamp" not in job["metadata"]
        return f"an active Job ({handle_of(job)})" if active else ""

    # --- asking

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """What Kubernetes says of the runs, by run id: one list call, and one more per kind of reason if any waits.

        Where nobody answers, the runs' files tell. Changes nothing, in the cluster or on disk.
        """
        try:
            seen = observe(self.kube, runs)
        except BackendError as error:
            return {run.id: last_known(run, str(error)) for run in runs}
        return {run.id: self._state(run, seen[run.id]) for run in runs}

    def _state(self, run: RunDir, seen: Observation) -> BackendState:
        if not self.shares_files and ended_unseen(run, seen):
            volume = f"volume {self.profile.claim} of namespace {self.kube.namespace}"
            return last_known(run, f"its Job has ended, and how lies on {volume}; `ropewalk show {run.id}` reads it")
        return run_state(run, seen)

    def settle(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """The runs' states, as `states` tells them, once the ends that only Kubernetes or the volume knows are written down here
        and Jobs that can never start are deleted. What fails of that is logged; runs of another user stay as they are.
        """
        try:
            seen = observe(self.kube, runs)
        except BackendError as error:
            return {run.id: last_known(run, str(error)) for run in runs}
        fetch = None if self.shares_files else self.reader.fetch
        return {run.id: settle_run(run, seen[run.id], self.kube, fetch) for run in runs}

    def sync(
        self, run: RunDir, wanted: Sequence[str] = (), write: Mapping[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Bring this machine's copy of a run up to date, where the run lies on a volume that it does not see.

        Large folders come only as far as they are `wanted`; `write` are small files to write there; `beside` are other runs
        there that come along, such as a sweep's trials.
        """
        if not self.shares_files and run.attempts():
            self.reader.fetch(run, wanted, write, beside)

    def export(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> bool:
        """Export a checkpoint where it lies, and bring the model here; whether that was needed."""
        if self.shares_files:
            return False
        self.reader.export(run, directory, step, options)
        return True

    # --- the rest

    def way_to(self, run: RunDir, node: str, port: int) -> str:
        """The kubectl that makes the port of a run's first pod a port of this machine: through its Service, if it has one."""
        context = f" --context {self.profile.context}" if self.profile.context else ""
        what = f"service/{service_name(run)}" if served_port(run) == port else f"job/{job_name_of(run)}"
        return f"kubectl{context} -n {self.kube.namespace} port-forward {what} {port}:{port}"

    def cancel(self, run: RunDir) -> None:
        """A run at work is told to save and leave; nothing of it stays in the cluster."""
        self.cancel_many([run])

    def cancel_many(self, runs: Sequence[RunDir]) -> None:
        """Cancel many runs, many at a time; how those ended that are over already is written down.

        A run that has no attempts, and is no longer on its way, was never submitted: it is over, and the server, to which no way
        may lead, is not asked.
        """
        long_ago = time.time() - UNSUBMITTED_SECONDS
        old = [run for run in runs if float(run.record.get("created") or math.inf) < long_ago and "parent" not in run.record]
        unsubmitted = [run for run in old if not run.attempts()]
        for run in unsubmitted:
            run.request_cancel()  # for a submission that is only just on its way
            run.begin_attempt()
            conclude(run, RunState.CANCELLED, "it was never submitted")
        over = {run.id for run in unsubmitted}
        if runs := [run for run in runs if run.id not in over]:
            self._cancel_submitted(runs)

    def _cancel_submitted(self, runs: Sequence[RunDir]) -> None:
        self.settle(runs)
        for run in runs:
            run.request_cancel()

        def remove(run: RunDir) -> None:
            waits = self._waits(run)
            try:
                # in the foreground, so that the Job is seen until its pods have saved and left
                self.kube.delete("Job", job_name_of(run), propagation="Foreground")
            except ApiAwayError as error:
                if not self.shares_files:
                    raise
                log.warning("%s; %s finds in its directory that it has to end, as soon as it runs", error, run.id)
                return
            if waits and run.attempts() and run.last_outcome() is None and not has_agents(run):
                conclude(run, RunState.CANCELLED, "cancelled while it waited")

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(remove, runs))

    def _waits(self, run: RunDir) -> bool:
        """Whether no pod of it has ever started: by its files or, where this machine does not see them, by its Job."""
        if self.shares_files:
            return not has_agents(run)
        try:
            status = self.kube.get("Job", job_name_of(run)).get("status") or {}
        except NotFoundError:
            return False
        return not status.get("active") and not status.get("failed")

    def checks(self) -> list[Check]:
        """What `doctor` prints of this cluster."""
        from ropewalk.k8s.status.doctor import checks  # noqa: PLC0415 - only doctor needs it

        return checks(lambda: self.kube, self.profile)

    def start_estimate(self, run: RunDir, resources: Resources) -> str:
        """Whether the run would wait, why, and what smaller request would start sooner; one sentence."""
        from ropewalk.k8s.status.start_estimate import estimate  # noqa: PLC0415 - only a dry run needs it

        return estimate(lambda: self.kube, self.profile, resources)
