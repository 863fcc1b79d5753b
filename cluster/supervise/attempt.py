"""One attempt in an allocation: start an agent on each node, hand on stops, replace lost nodes, shrink, grow, conclude."""

import logging
import math
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE, EXIT_TERMINATED, GateError
from ropewalk.cluster.fresh_reads import list_afresh, read_json_afresh
from ropewalk.cluster.process.forking import Process
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.event_log import WITHOUT_WORD
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.file_systems import Looks
from ropewalk.cluster.run.files import append_line
from ropewalk.cluster.run.key import RENDEZVOUS_KEY, new_key, write_private
from ropewalk.cluster.run.names import AGENTS, LOGS, NODES
from ropewalk.cluster.spec import Engine, Outcome, RunState, StopReason
from ropewalk.cluster.supervise.allocation import AgentSpec, Allocation, StoreSpec
from ropewalk.cluster.supervise.outcome import AgentExit, Ending, classify, shell_code

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
REPEAT_SECONDS = 1.0  # before a stop is sent again, then twice as long each time: an agent that is only just starting may miss it
SETTLE_SECONDS = 5.0  # what a group may take to leave after one of its nodes has left for good, or after its grace
ORPHAN_SECONDS = 3.0  # between two looks at the run on whose behalf this one exists
STOP = signal.SIGUSR2


class Attempt:
    """One attempt: its rendezvous store, its agents, and how each of them ended."""

    def __init__(
        self, run: RunDir, number: int, allocation: Allocation, *, retry_bugs: bool, python: str = sys.executable
    ) -> None:
        self.run, self.number, self.allocation = run, number, allocation
        self.resources: Resources = run.resources(number)
        self.retry_bugs, self.python = retry_bugs, python
        self.engine = Engine(run.record["engine"])
        self.elastic = self.resources.nodes.elastic and self.engine is Engine.RANKS
        self.folder = run.attempt_dir(number)
        self.agents: dict[int, Process] = {}
        self.codes: dict[int, int] = {}  # of agents that have exited, without those whose nodes were lost or left the others
        self.lost: list[str] = []
        self.leaving: set[int] = set()  # asked to go while the others stay
        self.store: Process | None = None
        self.rendezvous = ""
        self.started = time.time()
        self.reason = ""  # why the attempt was asked to stop
        self._stop_at: float | None = None  # by the monotonic clock: the notice before the time limit
        self._leave_by = math.inf  # by the monotonic clock: what is left then is ended
        self._next_look, self._request_looks = 0.0, Looks(run.path)
        self._next_signals: dict[int, tuple[float, float]] = {}  # to agents that were asked to stop: when again, the pause then

    def execute(self) -> Outcome:
        """Start the agents, wait until all have exited, and record the outcome."""
        self.run.make_folders(self.number)
        try:
            first = self.allocation.initial_nodes()
            if self.resources.time_limit_minutes and not self.allocation.owner_limits_time:
                self._stop_at = time.monotonic() + self.resources.time_limit_minutes * 60 - self.resources.grace_seconds
            if self.engine is Engine.RANKS:
                self._start_store()
            for node in first:
                self._start_agent(node, len(first))
            self._watch()
        finally:
            self._end_all()
        outcome = self._conclude()
        self.run.write_outcome(self.number, outcome)
        self.run.event("attempt_ended", attempt=self.number, state=outcome.state, cause=outcome.cause)
        return outcome

    # --- starting

    def _start_store(self) -> None:
        """Start the rendezvous store without waiting for it: the agents do, so that all import torch at the same time."""
        key = self.folder / RENDEZVOUS_KEY
        key.unlink(missing_ok=True)  # of a supervisor that opened this attempt and came no further
        write_private(key, new_key())
        host, port = self.allocation.address(0), str(self.allocation.free_port())
        spec = StoreSpec(attempt=self.number, host=host, port=port, python=self.python)
        self.store = self.allocation.start_store(spec, self.folder / LOGS / "store.log")
        self.rendezvous = f"{host}:{port}"

    def _start_agent(self, node: int, present: int) -> None:
        self._next_signals.pop(node, None)
        (self.folder / NODES / f"node-{node}.json").unlink(missing_ok=True)  # the report of an agent that left earlier
        address = self.allocation.address(node)
        spec = AgentSpec(
            run_path=str(self.run.path),
            attempt=self.number,
            node=node,
            nodes=str(self.resources.nodes) if self.elastic else str(present),
            address=address,
            rendezvous=self.rendezvous,
            python=self.python,
        )
        self.agents[node] = self.allocation.start(node, spec, self.folder / LOGS / f"node-{node}.log")
        line = {"node": node, "address": address, "pid": self.agents[node].pid, "started": time.time()}
        append_line(self.folder / AGENTS, line)

    # --- watching

    def _watch(self) -> None:
        """Hand on stops, handle exits, shrink and grow, until every agent has exited or those that are left must not go on."""
        while self.agents:
            self._look_for_stop(asked=(looks := self._request_looks.due()))
            self._signal_stop()
            for node in [node for node, agent in self.agents.items() if agent.poll() is not None]:
                if self._handle_agent_exit(node) is AgentExit.FAILED:
                    self._leave_within(SETTLE_SECONDS)
            if looks:
                self._resize()
            if self.lost and not self._enough():
                self._leave_within(0.0)  # the others cannot go on without it
            if time.monotonic() >= self._leave_by:
                log.info("ending the agents of nodes %s, which have not left by themselves", sorted(self.agents))
                return
            time.sleep(POLL_SECONDS)

    def _leave_within(self, seconds: float) -> None:
        self._leave_by = min(self._leave_by, time.monotonic() + seconds)

    def _handle_agent_exit(self, node: int) -> AgentExit:
        """Find out how a node's agent ended, and record it."""
        returncode = self.agents.pop(node).returncode
        report = self._report(node)
        if report is None and node in self._next_signals and returncode in (-STOP, 128 + STOP):
            code = EXIT_REQUEUE  # our stop signal killed it before it had a handler: it had nothing to save
        elif report is None and (why := self.allocation.loss_reason(node, returncode)):
            self.lost.append(f"node {node} died ({why})")
            self.run.event("node_lost", node=node, address=self.allocation.address(node), signal=why, attempt=self.number)
            self.allocation.mark_lost(node)
            return AgentExit.LOST
        else:
            code = int(report["exit_code"]) if report else shell_code(returncode)
        if code in (EXIT_REQUEUE, EXIT_TERMINATED) and self.elastic and self.agents and not self.reason:
            # this node alone was wanted back, or we asked it to leave: the others form a group without it
            self.run.event("node_left", node=node, attempt=self.number)
            (self.allocation.release if node in self.leaving else self.allocation.mark_lost)(node)
            self.leaving.discard(node)
            return AgentExit.LEFT
        if report and report.get("nothing_ran") and self.agents:  # the others' ranks may wait for its own to join them
            self.run.event("node_left_early", node=node, attempt=self.number)
        self.codes[node] = code
        return AgentExit.FINISHED if code in (EXIT_DONE, EXIT_REQUEUE) else AgentExit.FAILED

    def _report(self, node: int) -> dict[str, Any] | None:
        """What the agent of a node that is done wrote down; None where it came to no end of its own."""
        return read_json_afresh(self.folder / NODES / f"node-{node}.json")

    def _enough(self) -> bool:
        done = sum(code in (EXIT_DONE, EXIT_REQUEUE) for code in self.codes.values())
        return self.elastic and len(self.agents) + done >= self.resources.nodes.least

    def _resize(self) -> None:
        """Let an elastic run use the nodes that it may have: fewer when a user asks for fewer, more when more are there."""
        if not self.elastic or self.reason or self.codes or not self.agents:
            return
        wanted = min(self.run.wanted_nodes or self.resources.nodes.most, self.resources.nodes.most)
        staying = [node for node in self.agents if node not in self.leaving]
        for node in sorted(staying)[max(wanted, self.resources.nodes.least) :]:
            self.leaving.add(node)
            self.run.event("node_asked_to_leave", node=node, attempt=self.number)
        for node in self.allocation.acquire(wanted - len(self.agents)):
            self.run.event("node_returned", node=node, attempt=self.number)
            self._start_agent(node, len(self.agents) + 1)

    def _look_for_stop(self, *, asked: bool) -> None:
        """Find out whether the run has to stop, and why; `asked`: look for a user's request too."""
        if not self.reason:
            cancelled = (asked and self.run.cancel_requested) or self._orphaned()
            reason = StopReason.CANCELLED if cancelled else self._owners_reason()
            self.reason = StopReason.CANCELLED if reason and self.run.cancel_requested else reason
            if self.reason:  # an agent that heard of it late must not count from then: the owner of the nodes does not
                self._leave_within(self.resources.grace_seconds + SETTLE_SECONDS)

    def _owners_reason(self) -> str:
        if self._stop_at is not None and time.monotonic() > self._stop_at:
            return StopReason.TIME_LIMIT
        return self.allocation.stop_reason()

    def _signal_stop(self) -> None:
        """Send the stop to all agents, or to those that are to leave while the others stay; again to those that do not leave."""
        now = time.monotonic()
        for node in self.agents if self.reason else self.leaving & self.agents.keys():
            again, pause = self._next_signals.get(node, (0.0, REPEAT_SECONDS))
            if now >= again:
                self._next_signals[node] = (now + pause, 2 * pause)
                self.agents[node].send_signal(STOP)

    def _orphaned(self) -> bool:
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + ORPHAN_SECONDS
        return self.run.orphaned

    def _end_all(self) -> None:
        """Kill what is left of this attempt: nothing of it may outlive it."""
        for agent in self.agents.values():
            self.allocation.end(agent)
        if self.store is not None:
            self.allocation.end(self.store)
        for node, agent in self.agents.items():
            returncode, report = agent.wait(), self._report(node)  # it may only have waited for a sidecar
            self.codes.setdefault(node, int(report["exit_code"]) if report else shell_code(returncode))
        for node in self.codes:
            self.allocation.clean_up(node)

    # --- concluding

    def _conclude(self) -> Outcome:
        end = Ending(
            codes=self.codes,
            lost=self.lost,
            reason=self.reason,
            cancelled=self.run.cancel_requested,
            elastic=self.elastic,
            retry_bugs=self.retry_bugs and not bugs_spent(self.run, self.number),
            without_word=EXIT_REQUEUE in self.codes.values() and stopped_without_word(self.run, self.number),
        )
        verdict = classify(end if end.decided or self.reason else replace(end, reason=self._reason_past_us()))
        state = RunState.REFUSED if verdict.exit_code == EXIT_NEVER_RETRY and self._refused() else verdict.state
        return Outcome(
            state=state,
            exit_code=verdict.exit_code,
            cause=verdict.cause or self._first_error(),
            started=self.started,
            ended=time.time(),
            results=self.run.results() if state in {RunState.SUCCEEDED, RunState.REFUSED} else None,
        )

    def _refused(self) -> bool:
        """Whether what ended the run is its gate."""
        return any(first["type"] == GateError.__name__ for first in self.run.read_errors(self.number)[:1])

    def _reason_past_us(self) -> str:
        """Ask the owner of the nodes why agents stopped that this process had not told to; empty if it does not say."""
        codes = set(self.codes.values())
        reason = self._owners_reason() if EXIT_FAILED not in codes else ""
        return reason or (self.allocation.query_stop_reason() if codes & {EXIT_REQUEUE, EXIT_TERMINATED} else "")

    def _first_error(self) -> str:
        """The first error that any rank or agent recorded, else the agents' exit codes."""
        for first in self.run.read_errors(self.number):
            return f"{first['who']}: {first['type']}: {first['message']}"
        return "; ".join(f"node {n}'s agent exited with {c}{self._last_line(n)}" for n, c in sorted(self.codes.items()) if c)

    def _last_line(self, node: int) -> str:
        """The last line of an agent's log, which tells why one could not even start: a module, an image, a Python is missing."""
        log = self.folder / LOGS / f"node-{node}.log"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-20:]] if log.exists() else []
        found = [line for line in lines if line and not line.startswith("srun: error:")]
        return f" ({found[-1][:300]})" if found else ""


def bugs_spent(run: RunDir, number: int) -> bool:
    """Whether an agent of an attempt has retried the program's errors itself, as often as `retries.bugs` allows."""
    folder = run.attempt_dir(number) / NODES
    reports = [read_json_afresh(folder / name) for name in list_afresh(folder) if name.endswith(".json")]
    return any(report and report.get("bugs_spent") for report in reports)


def stopped_without_word(run: RunDir, number: int) -> bool:
    """Whether a program of an attempt's newest group ended after a stop, and neither said that it has saved nor committed."""
    events: list[dict[str, Any]] = []
    asked = False
    for event in run.read_events(afresh=True):
        if event.get("attempt") != number:
            continue
        asked |= event["event"] == "stop_requested"
        if asked and event["event"] == "checkpoint":
            return False
        if event["event"] == WITHOUT_WORD:
            events.append(event)
    return any(not Fence(run, number, int(event.get("group") or 0)).has_successor() for event in events)
