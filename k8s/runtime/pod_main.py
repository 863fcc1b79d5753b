"""The first process of every pod of a run: it starts an agent when it is told to, and a coordinator where no other pod leads.

Usage: python -m ropewalk.k8s.runtime.pod_main RUN_DIR
Exit codes: 0 the run is over, 1 it failed, 42 it failed for good, 85 Kubernetes asked this pod to go.
"""

import argparse
import logging
import os
import sys
import time
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ropewalk.cluster.backends.submission import submission_details
from ropewalk.cluster.errors import EXIT_DONE, EXIT_NEVER_RETRY, EXIT_REQUEUE
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import Forked, fork_program, import_modules, preload_modules
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.signals import SignalFlag, install_stop_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.runtime.child_processes import AgentProcess, ChildProcess, StoreProcess, share_of_node
from ropewalk.k8s.runtime.coordinator_link import CoordinatorLink
from ropewalk.k8s.runtime.handshake import ray_token
from ropewalk.k8s.runtime.job_outcome import pod_code, publish_outcome
from ropewalk.k8s.runtime.leader_election import LeaderElection
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.protocol import Message, StartAgent, StartStore
from ropewalk.k8s.runtime.timings import (
    LOST_SECONDS,
    ORPHAN_SECONDS,
    POD_TICK_SECONDS,
    RESTART_COORDINATOR_SECONDS,
    RETRY_CONNECT_SECONDS,
)

log = logging.getLogger(__name__)

COORDINATOR_LOG = "conductor.log"  # in the run's directory; of all its leaders


class PodState(Enum):
    """What a pod is doing."""

    SEEKING = auto()  # no coordinator is known to be there: find one, or become the leader
    FOLLOWING = auto()  # connected to the coordinator in another pod
    LEADING = auto()  # the coordinator runs here, and this pod connects to it as the others do
    LEAVING = auto()  # Kubernetes asked this pod to go, or the run is over: start nothing, and wait for the children


@dataclass
class KnownLeader:
    """What this pod knows of the run's leader from its connections."""

    answered_term: int = 0  # the newest term whose coordinator has let this pod in
    unanswered_term: int = 0  # the newest term whose coordinator has not, though it could be connected to
    call_again_at: float = 0.0  # when that is to be called again, by the monotonic clock
    silent_seconds: float = 0.0  # how long the last connection had been silent as it was given up

    def may_call(self, term: LeaderTerm) -> bool:
        """Whether it is time to connect to the coordinator of a term."""
        return term.port > 0 and (term.number != self.unanswered_term or time.monotonic() >= self.call_again_at)

    def lost(self, link: CoordinatorLink) -> None:
        """Note how a connection was lost."""
        self.silent_seconds = link.silent_seconds
        if not link.answered:
            self.unanswered_term = link.term.number
            self.call_again_at = time.monotonic() + (LOST_SECONDS if link.silent_seconds else RETRY_CONNECT_SECONDS)


class PodRuntime:
    """One pod: it obeys the coordinator's messages, and looks after its children in between.

    It has no thread beside the main one: it imports what its children need, and forks them.
    """

    def __init__(self, run: RunDir, pod: Pod, api: InClusterApi) -> None:
        self.run, self.pod, self.api = run, pod, api
        self.terms = LeaderTerms(run)
        self.election = LeaderElection(self.terms, pod, api)
        self.leader = KnownLeader()
        self.asked_to_go = SignalFlag()
        self.link: CoordinatorLink | None = None
        self.agent: AgentProcess | None = None
        self.store: StoreProcess | None = None
        self.coordinator: Forked | None = None
        self.exit_code: int | None = None  # set once this pod leaves
        self._kill_agent_at: float | None = None  # when an agent that has lost its coordinator has had its time to save
        self._lead_again_at = 0.0  # after a crash of the coordinator here

    @property
    def state(self) -> PodState:
        """What this pod is doing now."""
        if self.exit_code is not None:
            return PodState.LEAVING
        if self.coordinator is not None:
            return PodState.LEADING
        return PodState.SEEKING if self.link is None else PodState.FOLLOWING

    def live(self) -> int:
        """Serve until the run is over, or this pod has to go; return the exit code."""
        install_stop_handler(self.asked_to_go.set)
        self._prepare()
        while True:
            self._watch_children()
            if self.asked_to_go.is_set():
                self.asked_to_go.clear()
                self._go()
            if self.exit_code is not None and self.agent is None and self.coordinator is None:
                return self.exit_code
            if self.link is None:
                self._seek()
                time.sleep(POD_TICK_SECONDS)
            else:
                self._listen(self.link)

    def _prepare(self) -> None:
        """Import what is needed later, before anybody waits for this pod's heartbeat."""
        os.environ.update(share_of_node(self.run))  # torch looks at it as it is imported
        import_modules(["ropewalk.k8s.runtime.coordinator"])
        if self.pod.index == 0 and self.terms.newest() is None and not self._is_over():
            self._lead(1)
        import_modules(preload_modules(self.run))

    # --- children

    def _watch_children(self) -> None:
        if self.agent is not None and (code := self.agent.poll()) is not None:
            self.agent.clean_up(spared=[self.coordinator, self.store])
            if self.link is not None:
                self.link.send({"say": "ended", "agent": self.agent.number, "code": code})
            self.agent, self._kill_agent_at = None, None
        if self.coordinator is not None and (code := self.coordinator.poll()) is not None:
            log.info("the coordinator in this pod exited with %d", code)
            self.coordinator = None
            if code not in (EXIT_DONE, EXIT_REQUEUE):
                self._lead_again_at = time.monotonic() + RESTART_COORDINATOR_SECONDS
            last = self.terms.newest()
            if last is not None and last.uid == self.pod.uid and not self.terms.has_left(last):  # it was killed
                self.terms.leave(last)
        self._reap()

    def _reap(self) -> None:
        """Wait for children that are not this process's own: as PID 1 of the pod it inherits what its descendants leave."""
        children: list[ChildProcess | None] = [self.agent, self.store]
        ours = {child.process.pid for child in children if child is not None}
        ours |= {self.coordinator.pid} if self.coordinator is not None else set()
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)

    def _go(self) -> None:
        """Have everything in this pod save and leave, since Kubernetes takes the pod away."""
        log.info("Kubernetes asks this pod to go")
        self.exit_code = EXIT_REQUEUE if self.exit_code is None else self.exit_code
        if self.link is not None:
            self.link.send({"say": "leaving"})
        if self.coordinator is not None:
            self.coordinator.terminate()
        if self.agent is not None:
            self.agent.stop()

    # --- the coordinator

    def _listen(self, link: CoordinatorLink) -> None:
        for message in link.listen(POD_TICK_SECONDS):
            self._obey(message, link)
        if link.answered:
            self.election.reached()
            self.leader.answered_term = link.term.number
        if not link.lost:
            return
        log.info("the connection to the coordinator is lost: %s", link.lost)
        link.close()
        self.link = None
        self.leader.lost(link)
        if not link.answered and link.silent_seconds:  # it stands still, and its machine alone has taken the call
            self.election.unreachable(link.term, refused=False, silent_seconds=link.silent_seconds)
        self._kill_store()
        if self.agent is not None:
            self.agent.stop()
            self._kill_agent_at = time.monotonic() + (0.0 if link.silent_seconds else ORPHAN_SECONDS)

    def _obey(self, message: Message, link: CoordinatorLink) -> None:
        number = message.get("agent")
        agent = self.agent if self.agent is not None and self.agent.number == number else None
        match message["say"]:
            case "start":
                assert self.agent is None, "the coordinator starts one agent at a time"
                self.agent = AgentProcess.start(self.run, StartAgent.model_validate(message), ray_token(link.key))
                if self.state is PodState.LEAVING:  # the two messages have crossed
                    self.agent.stop()
            case "store":
                self.store = StoreProcess.start(self.run, StartStore.model_validate(message))
            case "kill" if self.store is not None and self.store.number == number:
                self._kill_store()
            case "stop" if agent is not None:
                agent.stop()
            case "kill" if agent is not None:
                agent.kill()
            case "regroup" if agent is not None:
                agent.end_ranks()
            case "over":
                self._end(int(message["code"]))

    def _kill_store(self) -> None:
        if self.store is not None:
            self.store.kill()
            self.store = None

    def _end(self, code: int) -> None:
        log.info("the run is over")
        self.exit_code = code
        if self.agent is not None:
            self.agent.kill()

    # --- finding a leader, or leading

    def _seek(self) -> None:
        """Connect to the coordinator of the newest term, or lead the run."""
        if self.agent is not None:  # of a coordinator that is no more: the next one begins anew
            if self._kill_agent_at is not None and time.monotonic() > self._kill_agent_at:
                self.agent.kill()
            return
        if self.state is PodState.LEAVING or self._is_over():
            return
        last = self.terms.newest()
        if last is not None and self.leader.may_call(last) and self._connect(last):
            return
        if self.state is PodState.SEEKING and time.monotonic() >= self._lead_again_at and self.election.my_turn(last):
            self._lead((last.number if last else 0) + 1)

    def _is_over(self) -> bool:
        """Whether the run is over, or has another Job by now; this pod then leaves."""
        if submission_details(self.run).get("name") != self.api.job_name:
            log.info("the run was submitted again, and has another Job")
            self.exit_code = EXIT_DONE
            return True
        outcome = self.run.last_outcome()
        if self.coordinator is not None or outcome is None or not outcome.state.final:
            return False
        publish_outcome(self.api, outcome)
        self._end(pod_code(outcome))
        return True

    def _connect(self, term: LeaderTerm) -> bool:
        """Connect to the coordinator of a term; False: it cannot be reached."""
        silent_seconds, self.leader.silent_seconds = self.leader.silent_seconds, 0.0
        try:
            known = term.number == self.leader.answered_term
            self.link = CoordinatorLink.connect(term, self.pod, self.terms.key_of(term), known=known)
        except OSError as error:
            self.election.unreachable(term, refused=isinstance(error, ConnectionRefusedError), silent_seconds=silent_seconds)
            return False
        return True

    def _lead(self, number: int) -> None:
        """Start a coordinator here; it leaves at once if that of another pod is faster."""
        words = module_command("ropewalk.k8s.runtime.coordinator", str(self.run.path), "--term", str(number))
        self.coordinator = fork_program(words, dict(os.environ), self.run.path / COORDINATOR_LOG)


def main() -> None:
    """Be a pod of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging(f"pod {os.environ['POD_NAME']}")
    if run.code is not None and not run.code.is_dir():
        log.error("%s: the copy of the code that the run was submitted with is gone; submit the run again", run.code)
        sys.exit(EXIT_NEVER_RETRY)
    code = PodRuntime(run, Pod.this(), InClusterApi()).live()
    log.info("leaving with %d", code)
    sys.exit(code)


if __name__ == "__main__":
    main()
