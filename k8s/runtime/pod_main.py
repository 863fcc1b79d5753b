"""What every pod of a run runs: an agent when it is told to, and the run's conductor where nobody else carries it.

Usage: python -m k8s.runtime.pod_main RUN_DIR
Exit codes: 0 the run is over, 1 it failed, 42 it failed for good, 85 Kubernetes asked this pod to go.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from cluster.backends.submission import submission_details
from cluster.errors import EXIT_DONE, EXIT_NEVER_RETRY, EXIT_REQUEUE
from cluster.process.forking import Forked, fork_program, import_modules, preload_modules
from cluster.process.output import configure_logging
from cluster.process.signals import SignalFlag, install_stop_handler
from cluster.run.directory import RunDir
from k8s.api.in_cluster import InClusterApi
from k8s.runtime.child_processes import LocalAgent, Store, share_of_node
from k8s.runtime.coordinator_link import Link
from k8s.runtime.handshake import ray_token
from k8s.runtime.job_outcome import pod_code, tell_the_end
from k8s.runtime.leader_election import Succession
from k8s.runtime.leader_terms import Claim, give_up, given_up, key_of, newest
from k8s.runtime.pod_status import Pod
from k8s.runtime.protocol import LOST_SECONDS, Message

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
ORPHAN_SECONDS = 5.0  # what an agent may take to save when its conductor has gone without a word
SEEK_SECONDS = 0.5  # before a conductor that has not answered is called again
CRASH_SECONDS = 5.0  # before a conductor is started again where one has failed
CONDUCTOR_LOG = "conductor.log"  # in the run's directory; of all its carriers


class Node:
    """One pod. It waits for its conductor's words, and looks after its children in between.

    It has no thread beside the main one: it imports what its children need, and forks them.
    """

    def __init__(self, run: RunDir, pod: Pod, api: InClusterApi) -> None:
        self.run, self.pod, self.api = run, pod, api
        self.succession = Succession(run, pod, api)
        self.asked_to_go = SignalFlag()
        self.link: Link | None = None
        self.agent: LocalAgent | None = None
        self.store: Store | None = None
        self.conductor: Forked | None = None
        self._code: int | None = None  # of this pod, once the run is over
        self._told_to_go = False
        self._orphaned_at: float | None = None
        self._carry_again_at = self._seek_again_at = 0.0
        self._silent_seconds = 0.0  # of the last connection, as it was given up
        self._heard = self._unanswered = 0  # the newest claim whose carrier has said anything, and that whose carrier has not

    def live(self) -> int:
        """Until the run is over, or this pod has to go; its exit code."""
        install_stop_handler(self.asked_to_go.set)
        self._prepare()
        while True:
            self._watch_children()
            if self.asked_to_go.is_set():
                self._go()
            if self.agent is None and self.conductor is None:
                if self._code is not None:
                    return self._code
                if self.asked_to_go.is_set():
                    return EXIT_REQUEUE
            if self.link is None:
                self._seek()
                time.sleep(TICK_SECONDS)
            else:
                self._listen(self.link)

    def _prepare(self) -> None:
        """Import what is needed later, before anybody waits for this pod's beat."""
        os.environ.update(share_of_node(self.run))  # torch looks at it as it is imported
        import_modules(["k8s.runtime.coordinator"])
        if self.pod.index == 0 and newest(self.run) is None and not self._nothing_to_do():
            self._carry(1)
        import_modules(preload_modules(self.run))

    # --- children

    def _watch_children(self) -> None:
        if self.agent is not None and (code := self.agent.poll()) is not None:
            self.agent.clean(spared=[each.pid for each in (self.conductor, self.store and self.store.process) if each])
            if self.link is not None:
                self.link.send({"say": "ended", "agent": self.agent.number, "code": code})
            self.agent, self._orphaned_at = None, None
        if self.conductor is not None and (code := self.conductor.poll()) is not None:
            log.info("the conductor in this pod ended with %d", code)
            self.conductor = None
            if code not in (EXIT_DONE, EXIT_REQUEUE):
                self._carry_again_at = time.monotonic() + CRASH_SECONDS
            last = newest(self.run)
            if last is not None and last.uid == self.pod.uid and not given_up(self.run, last):  # it was killed
                give_up(self.run, last)
        self._reap()

    def _reap(self) -> None:
        """As PID 1 of the pod it inherits what its descendants leave."""
        children = (self.conductor, self.agent and self.agent.process, self.store and self.store.process)
        ours = {child.pid for child in children if child}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)

    def _go(self) -> None:
        """Kubernetes takes the pod away: everybody here saves and leaves."""
        if not self._told_to_go:
            self._told_to_go = True
            log.info("asked to go")
            if self.link is not None:
                self.link.send({"say": "leaving"})
            if self.conductor is not None:
                self.conductor.terminate()
            if self.agent is not None:
                self.agent.stop()

    # --- whoever carries the run

    def _listen(self, link: Link) -> None:
        for message in link.listen(TICK_SECONDS):
            self._obey(message, link)
        if link.answered:
            self.succession.reached()
            self._heard = link.claim.number
        if link.lost:
            log.info("the connection to the conductor is lost: %s", link.lost)
            link.close()
            self.link, self._silent_seconds = None, link.silent_seconds
            if not link.answered:  # not let in, or there is nobody behind the socket
                self._unanswered = link.claim.number
                self._seek_again_at = time.monotonic() + (LOST_SECONDS if link.silent_seconds else SEEK_SECONDS)
                if link.silent_seconds:  # it stands still, and its machine alone has taken the call
                    self.succession.unreachable(link.claim, refused=False, silent_seconds=link.silent_seconds)
            if self.store is not None:
                self.store.kill()
                self.store = None
            if self.agent is not None:
                self.agent.stop()
                self._orphaned_at = time.monotonic() - (ORPHAN_SECONDS if link.silent_seconds else 0.0)

    def _obey(self, message: Message, link: Link) -> None:
        agent = self.agent if self.agent is not None and self.agent.number == message.get("agent") else None
        match message["say"]:
            case "start":
                assert self.agent is None, "the conductor starts one agent at a time"
                self.agent = LocalAgent.start(self.run, message, ray_token(link.key))
                if self.asked_to_go.is_set():  # the two words have crossed
                    self.agent.stop()
            case "store":
                self.store = Store.start(self.run, message)
            case "kill" if self.store is not None and self.store.number == message.get("agent"):
                self.store.kill()
                self.store = None
            case "stop" if agent is not None:
                agent.stop()
            case "kill" if agent is not None:
                agent.kill()
            case "regroup" if agent is not None:
                agent.end_ranks()
            case "over":
                self._end(int(message["code"]))

    def _end(self, code: int) -> None:
        log.info("the run is over")
        self._code = code
        if self.agent is not None:
            self.agent.kill()

    def _seek(self) -> None:
        """Find whoever carries the run, or carry it."""
        if self.agent is not None:  # of a conductor that is no more: the next one begins anew
            if self._orphaned_at is not None and time.monotonic() - self._orphaned_at > ORPHAN_SECONDS:
                self.agent.kill()
            return
        if self._code is not None or self._told_to_go or self._nothing_to_do():
            return
        last = newest(self.run)
        if last is not None and last.port and self._may_call(last) and self._reach(last):
            return
        if self.conductor is None and time.monotonic() >= self._carry_again_at and self.succession.my_turn(last):
            self._carry((last.number if last else 0) + 1)

    def _nothing_to_do(self) -> bool:
        """Whether the run is over, or another Job's by now."""
        if submission_details(self.run).get("name") != self.api.job_name:
            log.info("the run was submitted again: another Job carries it")
            self._code = EXIT_DONE
            return True
        outcome = self.run.last_outcome()
        if self.conductor is not None or outcome is None or not outcome.state.final:
            return False
        tell_the_end(self.api, outcome)
        self._end(pod_code(outcome))
        return True

    def _may_call(self, claim: Claim) -> bool:
        return claim.number != self._unanswered or time.monotonic() >= self._seek_again_at

    def _reach(self, claim: Claim) -> bool:
        try:
            self.link = Link.connect(claim, self.pod, key_of(self.run, claim), known=claim.number == self._heard)
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            self.succession.unreachable(claim, refused=refused, silent_seconds=self._silent_seconds)
            return False
        finally:
            self._silent_seconds = 0.0
        return True

    def _carry(self, number: int) -> None:
        """Start a conductor here; it leaves at once if another pod's is faster."""
        words = [sys.executable, "-m", "k8s.runtime.coordinator", str(self.run.path), "--claim", str(number)]
        self.conductor = fork_program(words, dict(os.environ), self.run.path / CONDUCTOR_LOG)


def main() -> None:
    """Be a pod of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging(f"pod {os.environ['POD_NAME']}")
    if run.code is not None and not run.code.is_dir():
        log.error("%s: the copy of the code that the run was submitted with is gone; submit the run again", run.code)
        sys.exit(EXIT_NEVER_RETRY)
    code = Node(run, Pod.this(), InClusterApi()).live()
    log.info("leaving with %d", code)
    sys.exit(code)


if __name__ == "__main__":
    main()
