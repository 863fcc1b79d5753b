"""What the head pod of a RayJob runs: Ray's head, the run itself, and the answers that KubeRay asks for.

Usage: python -m k8s.ray_head RUN_DIR
KubeRay makes a head anew where one is lost, and a whole cluster where the RayJob was suspended; each of them goes on where the
run's directory says. Exit codes: 0 the run is over, 85 Kubernetes asked this pod to go.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from cluster.backends.submission import submission_details
from cluster.engines.entry import configure_logging
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE
from cluster.process.signals import Flag, hear_stops
from cluster.run.directory import RunDir
from cluster.spec import Outcome, RunState
from cluster.supervise.supervisor import Supervisor, open_attempt, retries_of, spent
from k8s.api.in_cluster import ApiError, Inside
from k8s.ray_answers import FAILED, STOPPED, SUCCEEDED, Answers
from k8s.ray_burial import Burial
from k8s.ray_lane import HeadLane
from k8s.ray_pod import TOKEN_VARIABLE, PodRay, RayStartError, resources_of
from k8s.rayjob import JOBS_PORT, RAYLET_PORT
from k8s.runtime.job_outcome import tell_the_end
from k8s.runtime.leader_terms import Claim, give_up, given_up, newest, say_leaving, take
from k8s.runtime.pod_main import CONDUCTOR_LOG
from k8s.runtime.pod_status import Object, Pod, over
from k8s.status.pending_reasons import seconds_of

log = logging.getLogger(__name__)

DIED = "its carrier died: the head pod was lost, or Kubernetes took it away without notice"
LOOK_SECONDS = 0.5
OVERDUE_SECONDS = 5.0
UNPROVEN_SECONDS = 30.0  # what the last carrier is given to leave, where the API server may not be asked whether it has
STATUS = {RunState.SUCCEEDED: SUCCEEDED, RunState.CANCELLED: STOPPED, RunState.FAILED: FAILED}


class Head:
    """This pod."""

    def __init__(self, run: RunDir, pod: Pod, api: Inside, answers: Answers) -> None:
        self.run, self.pod, self.api, self.answers = run, pod, api, answers
        self.asked_to_go = Flag()
        self._claim: Claim | None = None
        self._lane: HeadLane | None = None
        hear_stops(self._go)

    def _go(self) -> None:
        """In a signal handler."""
        self.asked_to_go.set()
        if self._lane is not None:
            self._lane.asked_to_stop.set()
        if self._claim is not None:
            say_leaving(self.run, self._claim)

    def live(self) -> int:
        """Until this pod has to go; its exit code."""
        while not self.asked_to_go.is_set():
            if (end := self._end()) is not None:
                self.answers.conclude(*end)
                while not self.asked_to_go.wait(3600.0):  # a pod that left by itself would be made anew
                    pass
                return EXIT_DONE
            if self._predecessor_left():
                self._carry_on()
        return EXIT_REQUEUE

    def _end(self) -> tuple[str, str] | None:
        """In KubeRay's word and ours, if nothing is left to be done."""
        if (job := submission_details(self.run).get("name")) != self.api.job_name:
            return STOPPED, f"the run was submitted again: {job} carries it"
        outcome = self.run.last_outcome()
        if outcome is None or not outcome.state.final:
            return None
        tell_the_end(self.api, outcome)
        return STATUS.get(outcome.state, FAILED), outcome.cause

    def _predecessor_left(self) -> bool:
        """Wait until the pod that carried the run has saved and left: a new cluster may start before the old one has gone."""
        last, began = newest(self.run), time.monotonic()
        while not self.asked_to_go.wait(LOOK_SECONDS):
            if last is None or given_up(self.run, last) or last.uid == self.pod.uid:
                return True
            try:
                holder = self.api.pod(last.pod)
            except ApiError as error:
                if error.denied and time.monotonic() - began > UNPROVEN_SECONDS:
                    return True
                continue
            if holder is None or holder["metadata"]["uid"] != last.uid or over(holder) or _overdue(holder):
                return True
        return False

    def _carry_on(self) -> None:
        """One Ray, and attempts on it as long as it lives."""
        number = (last.number if (last := newest(self.run)) else 0) + 1
        claim = Claim(number=number, pod=self.pod.name, uid=self.pod.uid, index=0, address=self.pod.address)
        if not take(self.run, claim):
            return
        self._claim, resources = claim, resources_of(self.run)
        try:
            ray = PodRay.start(self.pod.address, resources, None, self.asked_to_go.is_set)
            if ray is not None:
                self._carry(claim, HeadLane(self.run, resources, ray, self.api, claim))
        except RayStartError as error:
            count(self.run, str(error))
        finally:
            self._claim = None
            give_up(self.run, claim)

    def _carry(self, claim: Claim, lane: HeadLane) -> None:
        self._lane = lane
        if self.asked_to_go.is_set():  # before there was a lane to tell
            self._go()
        try:
            carry(self.run, claim, lane)
        finally:
            self._lane = None
            lane.close()


def _overdue(pod: Object) -> bool:
    """It should be gone by now: its node does not answer, and the attempt's fence keeps what runs there from writing."""
    deadline = seconds_of(pod["metadata"].get("deletionTimestamp"))
    return bool(deadline) and time.time() > deadline + OVERDUE_SECONDS


def carry(run: RunDir, claim: Claim, lane: HeadLane) -> None:
    """One attempt after the other, until the run is over or the lane has to go."""
    while lane.await_nodes() and not lane.superseded():
        number = open_attempt(run, DIED)
        if number is None:
            return
        run.describe_attempt(number, hosts=[claim.pod], carrier=claim.pod, started=time.time())
        Supervisor(run, lane, sys.executable).supervise(number)
        outcome = run.last_outcome()
        if outcome is not None and outcome.state.final:
            return


def count(run: RunDir, error: str) -> None:
    """An attempt that could not begin: as often as the run's budget for errors allows."""
    log.error("%s", error)
    number = open_attempt(run, DIED)
    if number is not None:
        again = spent(run)[0] < retries_of(run).bugs
        state = RunState.REQUEUED if again else RunState.FAILED
        run.write_outcome(number, Outcome(state=state, exit_code=EXIT_FAILED, cause=error, ended=time.time()))


def refuse(run: RunDir, why: str) -> None:
    """The run can never start; the newest attempt says so."""
    log.error("%s", why)
    outcome = Outcome(state=RunState.FAILED, exit_code=EXIT_NEVER_RETRY, cause=why, ended=time.time())
    run.write_outcome(run.attempts()[-1], outcome)


def _log_also_to(path: Path) -> None:
    """Kubernetes forgets what a pod has printed as soon as the pod is gone."""
    root = logging.getLogger()
    handler = logging.FileHandler(path)
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


def main() -> None:
    """Be the head of a RayJob."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging(f"pod {os.environ['POD_NAME']}")
    _log_also_to(run.path / CONDUCTOR_LOG)
    token = os.environ.get(TOKEN_VARIABLE, "")
    entrypoint = f"python -m k8s.ray_head {run.path}"
    pod = Pod.this({**os.environ, "JOB_COMPLETION_INDEX": "0"})
    if not token:
        refuse(run, "this KubeRay makes no token for Ray, so anybody could use it: KubeRay 1.5, or ray: indexed in the profile")
    elif run.code is not None and not run.code.is_dir():
        refuse(run, f"{run.code}: the copy of the code that the run was submitted with is gone; submit the run again")
    api = Inside()
    Burial(api, "worker", RAYLET_PORT).start()
    code = Head(run, pod, api, Answers(pod.address, JOBS_PORT, token, entrypoint)).live()
    log.info("leaving with %d", code)
    logging.shutdown()
    os._exit(code)  # whatever thread of Ray's client is left


if __name__ == "__main__":
    main()
