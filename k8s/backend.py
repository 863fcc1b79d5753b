"""The Kubernetes backend: submits Jobs, exactly once, and reads what the cluster says of any number of runs in one list call."""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from cluster.backends.base import Backend, BackendState, Check, Profile
from cluster.backends.recovery import conclude, has_agents, last_known
from cluster.backends.submission import key_of, named_beside, next_attempt, open_attempts, open_dependencies, refuse_active
from cluster.config import Resources, load_section
from cluster.errors import BackendError, ConfigError, SubmissionInDoubtError
from cluster.run.directory import RUNS_VARIABLE, RunDir
from cluster.run.files import write_all
from cluster.spec import Engine, RunState
from cluster.supervise.supervisor import close_unfinished_attempt
from k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes, NotFoundError, Object
from k8s.api.kubeconfig import connect
from k8s.manifests.job import dump, owned_by, render_gate
from k8s.manifests.workload import JOB, Shape, carrier_of, find_carrier, forget_long_over, name_as, render, shape_of
from k8s.profile import K8sProfile
from k8s.status.observe import look
from k8s.status.pending_reasons import with_remedy
from k8s.status.run_state import end_of, ended_unseen, judge
from k8s.submission.hand_over import hand_over
from k8s.submission.preflight import refuse_the_impossible, refuse_without_rights
from k8s.submission.release_controller import Gate, write_gate
from k8s.submission.staging import add_unpacking, pack
from k8s.submission.submit import submit_once
from k8s.volume.reader import Reader

log = logging.getLogger(__name__)

THREADS = 16  # calls in flight; an API server gives each user a fair share


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

    def render(self, run: RunDir, resources: Resources) -> str:
        """The manifest, as `kubectl apply -f -` takes it."""
        return dump(render(run, resources, self.profile, kind=self._shape(_engine(run), resources).kind))

    def _shape(self, engine: Engine, resources: Resources, *, held: bool = False) -> Shape:
        return shape_of(engine, resources, self.profile, lambda: self.kube, held=held)

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Submit the run's next attempt. Raises AlreadyRunningError if a Job of an earlier submission is active."""
        if run.attempts():
            refuse_active(run, lambda: self._active_job(run))
            self.sync(run)
            close_unfinished_attempt(run, "its pods were lost before they could say how it ended")
        return self.submit_many([run], resources, after)[0]

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """The same for many runs, many at a time; at most `at_once` of them run at a time."""
        number = next_attempt(runs[0])
        others = self._still_open(runs[0], after)
        free = 0 if others else len(runs) if at_once is None else at_once  # so many need no gate
        shapes = {engine: self._shape(engine, resources, held=free < len(runs)) for engine in {*map(_engine, runs)}}
        kinds = {run.id: shapes[_engine(run)].kind for run in runs}
        manifests = {
            run.id: render(run, resources, self.profile, number, kind=kinds[run.id], held=i >= free) for i, run in enumerate(runs)
        }
        waits = {"after": others, "at_once": at_once}
        open_attempts(runs, resources, [{**self._details(run, number, kinds[run.id]), **waits} for run in runs], number)
        write_all({run.attempt_dir(number) / "manifest.yaml": dump(manifests[run.id]) for run in runs})
        if free < len(runs):
            ids = [run.id for run in runs]
            write_gate(runs[0], Gate(runs=ids, number=number, after=others, at_once=at_once, queue=self.profile.queue))
        if os.geteuid() == 0:
            hand_over(runs, number, self.profile.user)
        try:
            self._ask_first(resources)
            self._create(runs, number, manifests, gated=free < len(runs))
        except SubmissionInDoubtError:
            raise
        except BackendError as error:
            said = with_remedy(str(error))
            self._withdraw(runs, number, said)
            raise type(error)(said) from None
        return [str(run.attempt_details(number)["handle"]) for run in runs]

    def _create(self, runs: Sequence[RunDir], number: int, manifests: Mapping[str, list[Object]], *, gated: bool) -> None:
        jobs = {run: objects[0] for run, objects in manifests.items()}
        gate = render_gate(runs[0], self.profile, number) if gated else None
        parcels = {} if self.shares_files else pack(runs, number, jobs, self.reader)
        if gate is not None and parcels:
            add_unpacking(gate, runs[0], parcels[runs[0].id]["metadata"]["name"])

        def create(run: RunDir) -> Object:
            return submit_once(self.kube, manifests[run.id], before=[parcels[run.id]] if parcels else [])

        with ThreadPoolExecutor(THREADS) as pool:
            owners = list(pool.map(create, runs))
        if gate is not None:
            submit_once(self.kube, [owned_by(gate, owners[0]) if len(runs) == 1 else gate])
        if any(job["kind"] != JOB for job in jobs.values()):
            forget_long_over(self.kube, self.profile, runs[0].path.parent)

    def _still_open(self, head: RunDir, after: Sequence[str]) -> list[str]:
        """Of the runs that this one waits for, those that are not over. Raises ConfigError where one can never succeed."""
        if after and not self.shares_files:
            self.states(named_beside(head, after))  # writes down how those ended that have
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

    def _details(self, run: RunDir, number: int, kind: str) -> dict[str, object]:
        """What a submission writes down of this run, beside its resources."""
        name, namespace = name_as(kind, run, number), self.kube.namespace
        return {
            "backend": "k8s",
            "key": key_of(run, number),
            "name": name,
            "handle": f"k8s:{namespace}/{name}",
            "namespace": namespace,
            "profile": self.profile.model_dump(mode="json", exclude_defaults=True),
            "kind": None if kind == JOB else kind,
        }

    def _withdraw(self, runs: Sequence[RunDir], number: int, said: str) -> None:
        """A refusal ends the whole submission: nothing of it stays in the cluster."""

        def remove(run: RunDir) -> None:
            # who may not delete could not create either; and a Job that stays finds its run over
            with suppress(ForbiddenError, ApiAwayError):
                self.kube.delete(*carrier_of(run))

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(remove, runs))
        for run in runs:
            conclude(run, RunState.FAILED, f"never started: {said}")

    def _active_job(self, run: RunDir) -> str:
        try:
            job = find_carrier(self.kube, run)
        except NotFoundError:
            return ""
        active = end_of(job) is None and "deletionTimestamp" not in job["metadata"]
        return f"an active Job (k8s:{self.kube.namespace}/{job['metadata']['name']})" if active else ""

    # --- asking

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """One list call for all, and one more a kind of trouble if any waits. Where nobody answers, the runs' files do."""
        try:
            seen = look(self.kube, runs)
        except BackendError as error:
            return {run.id: last_known(run, str(error)) for run in runs}
        unread: dict[str, str] = {}
        for run in runs:
            if not self.shares_files and ended_unseen(run, seen[run.id]):
                try:
                    self.reader.fetch(run)
                except ApiAwayError as error:  # how it ended is there to be read, and must not be guessed
                    unread[run.id] = str(error)
                except BackendError as error:
                    log.warning("%s: how it ended cannot be read: %s", run.id, error)
        found = {r.id: last_known(r, unread[r.id]) if r.id in unread else judge(r, seen[r.id]) for r in runs}
        for run in runs:
            job = seen[run.id].job
            if job is not None and found[run.id].state is RunState.FAILED and end_of(job) is None:
                self._end_hopeless(run)
        return found

    def _end_hopeless(self, run: RunDir) -> None:
        """Delete a Job that can never start; whoever only looks at another's run leaves it alone."""
        if os.geteuid() not in {0, run.path.stat().st_uid}:
            return
        try:
            self.kube.delete(*carrier_of(run))
        except BackendError as error:
            log.warning("%s can never start, and its Job stays: %s", run.id, error)

    def sync(
        self, run: RunDir, wanted: Sequence[str] = (), write: Mapping[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Bring this machine's copy of a run up to date, where the run lies on a volume that it does not see.

        Large folders come only as far as they are `wanted`; `write` are small files to write there; `beside` are other runs
        there that come along, such as a sweep's trials.
        """
        if not self.shares_files and run.attempts():
            self.reader.fetch(run, wanted, write, beside)

    def export(self, run: RunDir, directory: Path, step: int | None) -> bool:
        """Export a checkpoint where it lies, and bring the model here; whether that was needed."""
        if self.shares_files:
            return False
        self.reader.export(run, directory, step)
        return True

    # --- the rest

    def cancel(self, run: RunDir) -> None:
        """A run at work is told to save and leave; nothing of it stays in the cluster."""
        self.cancel_many([run])

    def cancel_many(self, runs: Sequence[RunDir]) -> None:
        """The same for many runs, many at a time."""
        for run in runs:
            run.request_cancel()

        def remove(run: RunDir) -> None:
            waits = self._waits(run)
            try:
                # in the foreground, so that the Job is seen until its pods have saved and left
                self.kube.delete(*carrier_of(run), propagation="Foreground")
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
            status = find_carrier(self.kube, run).get("status") or {}
        except NotFoundError:
            return False
        return not status.get("active") and not status.get("failed")

    def checks(self) -> list[Check]:
        """What `doctor` prints of this cluster."""
        from k8s.status.doctor import checks  # noqa: PLC0415 - only doctor needs it

        return checks(lambda: self.kube, self.profile)

    def start_estimate(self, run: RunDir, resources: Resources) -> str:
        """Of the ray engine what it would be; whether it would wait, why, and what smaller request would start sooner."""
        from k8s.status.start_estimate import foresee  # noqa: PLC0415 - only a dry run needs it

        words = foresee(lambda: self.kube, self.profile, resources)
        if _engine(run) is Engine.RAY:
            shape = self._shape(Engine.RAY, resources)
            words = f"{'A RayJob' if shape.kind != JOB else 'An Indexed Job'}: {shape.why}. {words}"
        return words


def _engine(run: RunDir) -> Engine:
    return Engine(run.record["engine"])
