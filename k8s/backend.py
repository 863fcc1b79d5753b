"""The Kubernetes backend: submits each run as exactly one Job, and reads the states of many runs with one list call."""

import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from ropewalk.cluster.backends.base import Backend, BackendState, Check, GpuSupply, NodeProgram, Profile, Waiting
from ropewalk.cluster.backends.recovery import record_missing_outcome, state_from_files
from ropewalk.cluster.backends.submission import (
    dependencies_beside,
    next_attempt,
    open_attempts,
    open_dependencies,
    refuse_active,
    submission_key,
)
from ropewalk.cluster.config import Packages, Resources
from ropewalk.cluster.config_reader import load_section
from ropewalk.cluster.errors import BackendError, ConfigError, SubmissionInDoubtError
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir, runs_root
from ropewalk.cluster.run.files import write_all
from ropewalk.cluster.run.names import RECORD
from ropewalk.cluster.run.node_ledger import Failure, bad_nodes, read_failures
from ropewalk.cluster.spec import RunState
from ropewalk.cluster.supervise.supervisor import close_unfinished_attempt
from ropewalk.k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.api.objects import Object, end_of
from ropewalk.k8s.kubectl import exec_command, kubectl
from ropewalk.k8s.manifests.job import dump, render_job
from ropewalk.k8s.manifests.service import render_service, render_service_policy, served_port, service_name
from ropewalk.k8s.names import job_name_of, name_of
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.gpu_nodes import hosts_of, nodes_to_avoid
from ropewalk.k8s.status.observe import Observation, observe
from ropewalk.k8s.status.pending_reasons import with_remedy
from ropewalk.k8s.status.run_state import ended_unseen, handle_of, run_state
from ropewalk.k8s.status.settle import settle_run
from ropewalk.k8s.submission.cancel import cancel_submitted, cancel_unsubmitted
from ropewalk.k8s.submission.hand_over import hand_over
from ropewalk.k8s.submission.preflight import check_feasible, check_rights
from ropewalk.k8s.submission.release_controller import HeldRuns, write_held
from ropewalk.k8s.submission.secrets import SecretObject
from ropewalk.k8s.submission.staging import stage
from ropewalk.k8s.submission.submit import Submission, create_all, withdraw
from ropewalk.k8s.volume.reader import Reader

log = logging.getLogger(__name__)

CANNOT_WAIT = (
    "a run that waits for others is started by a pod, which needs a service account with the Role of k8s/manifests/rbac.yaml:"
    " apply that file, and set service_account: ropewalk in the cluster's profile"
)


class K8sBackend(Backend):
    """A namespace of a Kubernetes cluster, reached from outside the cluster or from one of its pods."""

    ships_code = True

    def __init__(self, profile: Profile, kube: Kubernetes | None = None) -> None:
        super().__init__(profile)
        self.profile = load_section(K8sProfile, profile.options, f"cluster {profile.name!r}")
        self._injected_client = kube

    @cached_property
    def kube(self) -> Kubernetes:
        """Client of the cluster; a dry run never needs it."""
        return self._injected_client or connect(self.profile)

    @cached_property
    def reader(self) -> Reader:
        """Reader of the volume, for machines that do not mount it."""
        return Reader(self.kube, self.profile)

    @property
    def mounts(self) -> Mapping[str, str]:
        return {mount.name: mount.path for mount in self.profile.mounts if mount.name is not None}

    @property
    def shares_files(self) -> bool:
        return self.profile.runs is not None or os.environ.get(RUNS_VARIABLE) == self.profile.claim_path

    def path_here(self, path: str) -> Path | None:
        inside = Path(path)
        if not inside.is_relative_to(self.profile.claim_path):
            elsewhere = (
                any(inside.is_relative_to(mount.path) for mount in self.profile.mounts if mount.claim) and not inside.exists()
            )
            return None if elsewhere else inside
        if self.profile.runs is None:
            return inside if self.shares_files else None
        return Path(self.profile.runs).expanduser() / inside.relative_to(self.profile.claim_path)

    def path_there(self, path: Path) -> str:
        runs = Path(self.profile.runs).expanduser() if self.profile.runs is not None else runs_root()
        is_run_file = path.is_relative_to(runs.absolute())
        return f"{self.profile.claim_path}/{path.relative_to(runs.absolute())}" if is_run_file else str(path)

    def fetch(self, wanted: Sequence[tuple[str, str]], store: str) -> None:
        from huggingface_hub import constants, get_token  # noqa: PLC0415 - slow, and rarely needed

        self.reader.fill(wanted, store, {"endpoint": constants.ENDPOINT, "token": get_token()})

    # --- submitting

    def check_waiting(self) -> None:
        """Raise ConfigError without a service account, because nothing could start the waiting runs then."""
        if self.profile.service_account is None:
            raise ConfigError(CANNOT_WAIT)

    def check_access(self) -> None:
        """Raise ConfigError if no kubeconfig leads to the cluster. Sends no request."""
        _ = self.kube

    def packages(self, wanted: Packages | None) -> None:
        if wanted is not None:
            raise ConfigError("packages: pods have those of their image; install them there, and set `image` in the profile")

    def secret_store(self) -> SecretObject:
        return SecretObject(self.kube, self.profile.secret_store)

    def check_secrets(self, names: Sequence[str]) -> None:
        """Raise ConfigError if a secret is not set. Who may not read Secrets, such as a pod, leaves that to the agents."""
        with suppress(ForbiddenError, ApiAwayError):
            super().check_secrets(names)

    def render(self, run: RunDir, resources: Resources) -> str:
        """Render the manifest of the run's first attempt for `kubectl apply -f -`. Sends no request and writes nothing."""
        served = (render_service(run, self.profile, 1), render_service_policy(run, self.profile, 1))
        return dump([render_job(run, resources, self.profile), *(item for item in served if item is not None)])

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        if run.attempts():
            refuse_active(run, lambda: self._active_job(run))
            self.sync(run)
            close_unfinished_attempt(run, "its pods were lost before they reported an outcome")
        return self.submit_many([run], resources, after)[0]

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        """Submit the next attempt of many runs, of which at most `at_once` run at a time; return their handles, in order."""
        number = next_attempt(runs[0])
        others = self._still_open(runs[0], after)
        free = 0 if others else len(runs) if at_once is None else at_once  # number of runs that may start immediately
        if free < len(runs):
            self.check_waiting()
        avoided = hosts_of(self._avoided(runs[0].path.parent))
        jobs = {
            run.id: render_job(run, resources, self.profile, number, held=i >= free, avoided=avoided)
            for i, run in enumerate(runs)
        }
        waits = {"after": others, "at_once": at_once}
        open_attempts(runs, resources, [{**self._details(run, number), **waits} for run in runs], number)
        write_all({run.attempt_dir(number) / "manifest.yaml": dump([jobs[run.id]]) for run in runs})
        if free < len(runs):
            ids = [run.id for run in runs]
            write_held(runs[0], HeldRuns(runs=ids, number=number, after=others, at_once=at_once, queue=self.profile.queue))
        if os.geteuid() == 0:
            hand_over(runs, number, self.profile.user)
        try:
            self.check_feasible(runs[0], resources)
            staged = {} if self.shares_files else stage(runs, number, jobs, self.reader.upload)
            submission = Submission(runs=runs, number=number, jobs=jobs, staged=staged, held=free < len(runs))
            create_all(self.kube, self.profile, submission)
        except SubmissionInDoubtError:
            raise
        except BackendError as error:
            message = with_remedy(str(error))
            withdraw(self.kube, runs, number)
            for run in runs:
                record_missing_outcome(run, RunState.FAILED, f"never started: {message}")
            raise type(error)(message) from None
        return [str(run.attempt_details(number)["handle"]) for run in runs]

    def failures(self, root: Path) -> list[Failure]:
        return read_failures(root, self.cluster.name, self.profile.user)  # pods write the ledger

    def avoided_nodes(self, root: Path) -> Sequence[str]:
        """Return the nodes to avoid, at most a tenth of those that the profile's pods may run on.

        Empty without the right to list nodes. Kubernetes is asked if any node has failed.
        """
        return [str(node["metadata"]["name"]) for node in self._avoided(root)]

    def _avoided(self, root: Path) -> list[Object]:
        bad = bad_nodes(self.failures(root), time.time())
        return nodes_to_avoid(self.kube, self.profile, bad) if bad else []

    def _still_open(self, head: RunDir, after: Sequence[str]) -> list[str]:
        """Return the dependencies whose runs are not over. Raises ConfigError if one can no longer be met."""
        if after and not self.shares_files:
            self.settle([other.run for other in dependencies_beside(head, after)])
        others = open_dependencies(head, after)
        for other in others:
            if not other.run.attempts():
                raise ConfigError(
                    f"--after {other}: it has no directory beside this run; a run can only wait for runs on its own cluster"
                )
        return [str(other) for other in others]

    def check_feasible(self, run: RunDir, resources: Resources) -> None:
        """Raise BackendError for requests that can never run. An API server that does not answer is left to the submission."""
        with suppress(ApiAwayError):
            check_feasible(self.kube, self.profile, resources)

    def check_rights(self) -> None:
        """Raise ConfigError if this process may not submit runs, before the job that submits them starts."""
        with suppress(ApiAwayError):
            check_rights(self.kube, self.profile)

    def _details(self, run: RunDir, number: int) -> dict[str, object]:
        """Return the details of a submission that `attempt.json` records beside its resources."""
        name, namespace = name_of(run.id, number), self.kube.namespace
        return {
            "backend": "k8s",
            "key": submission_key(run, number),
            "name": name,
            "handle": f"k8s:{namespace}/{name}",
            "namespace": namespace,
            "profile": self.profile.model_dump(mode="json", exclude_defaults=True),
        }

    def _active_job(self, run: RunDir) -> str:
        """Describe the Job of the run's newest submission if it is active; else return an empty string."""
        try:
            job = self.kube.get("Job", job_name_of(run))
        except NotFoundError:
            return ""
        active = end_of(job) is None and "deletionTimestamp" not in job["metadata"]
        return f"an active Job ({handle_of(job)})" if active else ""

    # --- queries

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Return the runs' states by run id, with one list call, and one per kind of pending reason if a run waits.

        Falls back to the runs' files if the API server does not answer. Changes nothing in the cluster or on disk.
        """
        try:
            observations = observe(self.kube, runs)
        except BackendError as error:
            return {run.id: state_from_files(run, str(error)) for run in runs}
        return {run.id: self._state(run, observations[run.id]) for run in runs}

    def _state(self, run: RunDir, observation: Observation) -> BackendState:
        if not self.shares_files and ended_unseen(run, observation):
            volume = f"volume {self.profile.claim} of namespace {self.kube.namespace}"
            remedy = f"without one, `ropewalk resume {run.id}` continues the run"
            return state_from_files(run, f"its Job has ended; `ropewalk show {run.id}` reads its outcome on {volume}; {remedy}")
        return run_state(run, observation)

    def settle(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Return the runs' states after recording outcomes that only Kubernetes or the volume knows.

        Also deletes Jobs that can never start. Failures are logged; runs of other users are left unchanged.
        """
        try:
            observations = observe(self.kube, runs)
        except BackendError as error:
            return {run.id: state_from_files(run, str(error)) for run in runs}
        fetch = None if self.shares_files else self.reader.fetch
        return {run.id: settle_run(run, observations[run.id], self.kube, fetch) for run in runs}

    def sync(
        self, run: RunDir, wanted: Sequence[str] = (), write: Mapping[str, str] | None = None, beside: Sequence[str] = ()
    ) -> None:
        """Update this machine's copy of a run whose volume is not mounted here.

        Large folders are copied only if they are in `wanted`. `write` maps small files to write there to their content.
        `beside` names other runs to copy as well, such as a sweep's trials.
        """
        is_elsewhere = not (run.path / RECORD).exists()  # it has moved to this cluster
        if not self.shares_files and (run.attempts() or is_elsewhere):
            self.reader.fetch(run, wanted, write, beside)

    def run_beside(self, module: str, stdin: BinaryIO, stdout: BinaryIO) -> None:
        """Run a module in a pod that mounts the volume of the runs, and those of data."""
        self.reader.run(module, stdin, stdout)

    def export(self, run: RunDir, directory: Path, step: int | None, options: Sequence[str] = ()) -> bool:
        """Export a checkpoint in a pod and download the model. Returns False if the volume is mounted here."""
        if self.shares_files:
            return False
        self.reader.export(run, directory, step, options)
        return True

    # --- other operations

    def tunnel_command(self, run: RunDir, node: str, port: int, local_port: int) -> str:
        """Return the kubectl command that forwards to a port of the run's first pod, through its Service if it has one."""
        target = f"service/{service_name(run)}" if served_port(run) == port else f"job/{job_name_of(run)}"
        return shlex.join([*kubectl(self.profile, self.kube.namespace), "port-forward", target, f"{local_port}:{port}"])

    def shell_command(self, run: RunDir, program: NodeProgram) -> list[str]:
        pods = self.kube.list("Pod", {"batch.kubernetes.io/job-name": job_name_of(run)}, "status.phase=Running")
        # by its address: a pod of the same index may be leaving, and a leader other than pod 0 is node 0
        names = {ip["ip"]: pod["metadata"]["name"] for pod in pods for ip in pod["status"].get("podIPs", ())}
        name = names.get(program.address)
        if name is None:
            raise ConfigError(f"{run.id} has no running pod for node {program.node}")
        return exec_command(kubectl(self.profile, self.kube.namespace), self.profile, str(name), run, program)

    def explain_waiting(self, run: RunDir) -> Waiting:
        from ropewalk.k8s.status.waiting import explain_waiting  # noqa: PLC0415 - only `why` needs it

        try:
            workload = observe(self.kube, [run])[run.id].workload
        except BackendError:
            return Waiting()
        details = run.attempt_details(run.attempts()[-1])
        resources = Resources.model_validate(details.get("resources") or run.record["resources"])
        return explain_waiting(self.kube, self.profile, workload, resources)

    def hold(self, run: RunDir) -> None:
        self._admit(run, admitted=False)

    def release(self, run: RunDir) -> None:
        self._admit(run, admitted=True)

    def _admit(self, run: RunDir, *, admitted: bool) -> None:
        workload = observe(self.kube, [run])[run.id].workload
        if workload is None:
            raise ConfigError(f"{run.id} does not wait in a queue of Kueue; only such runs can be held")
        self.kube.patch("Workload", workload["metadata"]["name"], {"spec": {"active": admitted}})

    def cancel(self, run: RunDir) -> None:
        """Ask a running run to save and stop, and delete its Job."""
        self.cancel_many([run])

    def cancel_many(self, runs: Sequence[RunDir]) -> None:
        """Cancel many runs concurrently. Records the outcome of those that are already over.

        Needs no API server for runs that were never submitted.
        """
        if submitted := cancel_unsubmitted(runs):
            self.settle(submitted)
            cancel_submitted(self.kube, submitted, shares_files=self.shares_files)

    def checks(self) -> list[Check]:
        from ropewalk.k8s.status.doctor import checks  # noqa: PLC0415 - only doctor needs it

        return checks(lambda: self.kube, self.profile)

    def gpu_supply(self) -> GpuSupply:
        """Return the GPUs of the node that has most among those that match the profile. Raises BackendError."""
        from ropewalk.k8s.status.gpu_nodes import gpus_per_node, requests_gpus  # noqa: PLC0415 - not for jobs that set `gpus`

        if requests_gpus(self.profile):
            return GpuSupply(per_node=0)
        return GpuSupply(per_node=gpus_per_node(self.kube, self.profile), owner="nodes that match the profile have")

    def start_estimate(self, run: RunDir, resources: Resources) -> str:
        from ropewalk.k8s.status.start_estimate import estimate  # noqa: PLC0415 - only a dry run needs it

        return estimate(lambda: self.kube, self.profile, resources)
