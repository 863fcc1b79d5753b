"""First process of every pod of a run: starts an agent on the coordinator's command, and a coordinator if no pod leads the run.

Usage: python -m ropewalk.k8s.runtime.pod_main RUN_DIR
Exit codes: 0 the run is over, 1 it failed, 42 it failed for good, 85 Kubernetes deletes this pod.
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
from ropewalk.cluster.membership.link import Link
from ropewalk.cluster.membership.protocol import Message
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import Forked, fork_program, import_modules, preload_modules
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.signals import SignalFlag, install_stop_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.runtime.child_processes import AgentProcess, ChildProcess, GroupServerProcess, ray_token, share_of_node
from ropewalk.k8s.runtime.job_outcome import pod_code, publish_outcome
from ropewalk.k8s.runtime.leader_election import CANDIDATES, LeaderElection
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.pod_status import Pod
from ropewalk.k8s.runtime.protocol import StartAgent, StartGroupServer
from ropewalk.k8s.runtime.timings import (
    COORDINATOR_START_SECONDS,
    FAR_SEEK_SECONDS,
    LOST_SECONDS,
    ORPHAN_SECONDS,
    POLL_SECONDS,
    RESTART_COORDINATOR_SECONDS,
    RETRY_CONNECT_SECONDS,
    SEEK_SECONDS,
)

log = logging.getLogger(__name__)

COORDINATOR_LOG = "conductor.log"  # in the run directory; shared by the coordinators of all terms


class PodState(Enum):
    """Activity of a pod."""

    SEEKING = auto()  # no connection to a coordinator: find one, or become the leader
    FOLLOWING = auto()  # connected to the coordinator in another pod
    LEADING = auto()  # the coordinator runs in this pod, which connects to it like the others
    LEAVING = auto()  # Kubernetes deletes this pod, or the run is over: start nothing and wait for the children


@dataclass
class LeaderContact:
    """State of this pod's connections to the run's leaders."""

    answered_term: int = 0  # newest term whose coordinator has admitted this pod
    failed_term: int = 0  # term whose coordinator was lost or could not be reached
    retry_at: float = 0.0  # monotonic time of the next connection to that one
    silent_seconds: float = 0.0  # silence of the last connection when it was given up

    def may_connect(self, term: LeaderTerm) -> bool:
        """Return True if it is time to connect to the coordinator of a term."""
        return term.port > 0 and (term.number != self.failed_term or time.monotonic() >= self.retry_at)

    def record_failure(self, term: LeaderTerm, seconds: float = RETRY_CONNECT_SECONDS) -> None:
        """Connect to the coordinator of the term after some seconds again; to that of a later one at once."""
        self.failed_term, self.retry_at = term.number, time.monotonic() + seconds

    def record_loss(self, link: Link, term: LeaderTerm) -> None:
        self.silent_seconds = link.silent_seconds
        self.record_failure(term, LOST_SECONDS if link.silent_seconds and not link.answered else RETRY_CONNECT_SECONDS)


class PodRuntime:
    """A pod of a run: executes the coordinator's commands and supervises its child processes.

    Runs in a single thread, because it forks its children after importing the modules that they need.
    """

    def __init__(self, run: RunDir, pod: Pod, api: InClusterApi) -> None:
        self.run, self.pod, self.api = run, pod, api
        self.terms = LeaderTerms(run)
        self.election = LeaderElection(self.terms, pod, api)
        self.leader = LeaderContact()
        self.stop_requested = SignalFlag()
        self.link: Link | None = None  # to the coordinator of `term`
        self.term = LeaderTerm(number=0)
        self.agent: AgentProcess | None = None
        self.group_server: GroupServerProcess | None = None
        self.coordinator: Forked | None = None
        self.exit_code: int | None = None  # set once this pod exits
        self._kill_agent_at: float | None = None  # deadline for an agent without a coordinator to save
        self._next_seek = 0.0
        self._lead_again_at = 0.0  # after a crash of this pod's coordinator

    @property
    def state(self) -> PodState:
        if self.exit_code is not None:
            return PodState.LEAVING
        if self.coordinator is not None:
            return PodState.LEADING
        return PodState.SEEKING if self.link is None else PodState.FOLLOWING

    def serve(self) -> int:
        """Serve until the run is over or Kubernetes deletes this pod; return the exit code."""
        install_stop_handler(self.stop_requested.set)
        self._prepare()
        while True:
            self._watch_children()
            if self.stop_requested.is_set():
                self.stop_requested.clear()
                self._stop()
            if self.exit_code is not None and self.agent is None and self.coordinator is None:
                return self.exit_code
            if self.link is None:
                if self._may_seek():
                    self._seek()
                time.sleep(SEEK_SECONDS)
            else:
                self._listen(self.link)

    def _prepare(self) -> None:
        """Import all modules that are needed later, before a coordinator expects heartbeats of this pod."""
        os.environ.update(share_of_node(self.run))  # torch reads these variables when it is imported
        import_modules(["ropewalk.k8s.runtime.coordinator"])
        if self.pod.index == 0 and self.terms.newest() is None and not self._is_over():
            self._lead(1)
        import_modules(preload_modules(self.run))

    # --- children

    def _watch_children(self) -> None:
        if self.agent is not None and (code := self.agent.poll()) is not None:
            self.agent.clean_up(spared=[self.coordinator, self.group_server])
            if self.link is not None:
                self.link.send({"say": "ended", "agent": self.agent.number, "code": code})
            self.agent, self._kill_agent_at = None, None
        if self.coordinator is not None and (code := self.coordinator.poll()) is not None:
            log.info("the coordinator in this pod exited with %d", code)
            self.coordinator = None
            if code not in (EXIT_DONE, EXIT_REQUEUE):
                self._lead_again_at = time.monotonic() + RESTART_COORDINATOR_SECONDS
            last = self.terms.newest()
            if last is not None and last.uid == self.pod.uid and not self.terms.has_left(last):  # the coordinator was killed
                self.terms.leave(last)
        self._reap()

    def _reap(self) -> None:
        """Wait for orphaned descendants, which the pod's PID 1 adopts."""
        children: list[ChildProcess | None] = [self.agent, self.group_server]
        own_pids = {child.process.pid for child in children if child is not None}
        own_pids |= {self.coordinator.pid} if self.coordinator is not None else set()
        while True:
            try:
                exited = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if exited is None or exited.si_pid in own_pids:
                return
            os.waitpid(exited.si_pid, 0)

    def _stop(self) -> None:
        """Let all processes of this pod save and exit, because Kubernetes deletes the pod."""
        log.info("Kubernetes deletes this pod")
        self.exit_code = EXIT_REQUEUE if self.exit_code is None else self.exit_code
        if self.link is not None:
            self.link.send({"say": "leaving"})
        if self.coordinator is not None:
            self.coordinator.terminate()
        if self.agent is not None:
            self.agent.stop()

    # --- the coordinator

    def _listen(self, link: Link) -> None:
        for message in link.listen(POLL_SECONDS):
            self._execute(message, link)
        if link.answered:
            self.election.reached()
            self.leader.answered_term = self.term.number
        if not link.lost:
            return
        log.info("lost the connection to the coordinator: %s", link.lost)
        self.link = None
        self.leader.record_loss(link, self.term)
        if link.answered or link.silent_seconds:  # else only the kernel accepted the connection, of a process that starts
            gone = link.answered and not link.silent_seconds
            self.election.unreachable(self.term, gone=gone, silent_seconds=link.silent_seconds)
        self._kill_group_server()
        if self.agent is not None and not self.agent.stays:
            self.agent.stop()
            self._kill_agent_at = time.monotonic() + (0.0 if link.silent_seconds else ORPHAN_SECONDS)

    def _execute(self, message: Message, link: Link) -> None:
        number = message.get("agent")
        agent = self.agent if self.agent is not None and self.agent.number == number else None
        match message["say"]:
            case "start":
                assert self.agent is None, "the coordinator starts one agent at a time"
                self.agent = AgentProcess.start(self.run, StartAgent.model_validate(message), ray_token(link.key))
                if self.state is PodState.LEAVING:  # the messages have crossed
                    self.agent.stop()
            case "groups":
                self.group_server = GroupServerProcess.start(self.run, StartGroupServer.model_validate(message))
            case "kill" if self.group_server is not None and self.group_server.number == number:
                self._kill_group_server()
            case "stop" if agent is not None:
                agent.stop()
            case "kill" if agent is not None:
                agent.kill()
            case "over":
                self._end(int(message["code"]))

    def _kill_group_server(self) -> None:
        if self.group_server is not None:
            self.group_server.kill()
            self.group_server = None

    def _end(self, code: int) -> None:
        log.info("the run is over")
        self.exit_code = code
        if self.agent is not None:
            self.agent.kill()

    # --- finding a leader, or leading

    def _may_seek(self) -> bool:
        """Return True if it is time to read the run directory; a thousand pods may be without a leader at once."""
        now = time.monotonic()
        if now < self._next_seek:
            return False
        self._next_seek = now + (SEEK_SECONDS if self.pod.index < CANDIDATES else FAR_SEEK_SECONDS)
        return True

    def _seek(self) -> None:
        """Connect to the coordinator of the newest term, or lead the run."""
        if self.agent is not None and not self.agent.stays:  # the next coordinator starts its own
            if self._kill_agent_at is not None and time.monotonic() > self._kill_agent_at:
                self.agent.kill()
            return
        if self.state is PodState.LEAVING or self._is_over():
            return
        last = self.terms.newest()
        if last is not None and self.leader.may_connect(last) and self._connect(last):
            return
        if self.state is not PodState.SEEKING or time.monotonic() < self._lead_again_at or not self.election.is_my_turn(last):
            return
        if self.terms.newest() == last:  # no other pod was faster while this one asked the API server
            self._lead((last.number if last else 0) + 1)

    def _is_over(self) -> bool:
        """Return True if the run is over or has another Job by now, which means that this pod exits."""
        if submission_details(self.run).get("name") != self.api.job_name:
            log.info("the run was submitted again and has another Job")
            self.exit_code = EXIT_DONE
            return True
        outcome = self.run.last_outcome()
        if self.coordinator is not None or outcome is None or not outcome.state.final:
            return False
        publish_outcome(self.api, outcome)
        self._end(pod_code(outcome))
        return True

    def _connect(self, term: LeaderTerm) -> bool:
        """Connect to the coordinator of a term. Returns False if it cannot be reached."""
        silent_seconds, self.leader.silent_seconds = self.leader.silent_seconds, 0.0
        try:
            patience = LOST_SECONDS if term.number == self.leader.answered_term else COORDINATOR_START_SECONDS
            agent = [self.agent.number, self.agent.attempt] if self.agent is not None else None
            introduction = {"name": self.pod.name, "pod": vars(self.pod), "agent": agent}
            key = self.terms.key_of(term)
            self.link = Link(term.address, term.port, key, introduction=introduction, patience_seconds=patience)
            self.term = term
        except OSError as error:
            self.leader.record_failure(term)
            self.election.unreachable(term, gone=isinstance(error, ConnectionRefusedError), silent_seconds=silent_seconds)
            return False
        return True

    def _lead(self, number: int) -> None:
        """Start a coordinator in this pod; it exits immediately if that of another pod was faster."""
        command = module_command("ropewalk.k8s.runtime.coordinator", str(self.run.path), "--term", str(number))
        self.coordinator = fork_program(command, dict(os.environ), self.run.path / COORDINATOR_LOG)


def main() -> None:
    """Run a pod."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    run.refresh_changes()
    configure_logging(f"pod {os.environ['POD_NAME']}")
    if run.code is not None and not run.code.is_dir():
        log.error("%s: the submitted copy of the code is gone; submit the run again", run.code)
        sys.exit(EXIT_NEVER_RETRY)
    code = PodRuntime(run, Pod.this(), InClusterApi()).serve()
    log.info("exiting with %d", code)
    sys.exit(code)


if __name__ == "__main__":
    main()
